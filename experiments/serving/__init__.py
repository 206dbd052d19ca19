"""A trained model behind HTTP, as OpenAI's interface has it: `python main.py --mode=serve --workdir=runs/first`.

Two processes. The one that speaks HTTP imports no jax: `server` starts it, `app` has its routes, `asked` the bodies,
`answers` what goes back, `engines` its end of the pipe. The other one, its child, holds the model: `worker` turns an
`experiments.generation.engine.Engine`. They exchange frames of JSON (`frames`), one for each request, and one for each
step of the engine. docs/server.md is for users.
"""
