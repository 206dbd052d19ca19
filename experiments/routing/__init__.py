"""What can be done with a trace of routing, `[tokens, layers, K]` whole numbers: place, predict and keep experts.

    traces        the file of a run, and counts that are read off it
    placement     which expert lies on which device: ExFlow, MoETuner, exact solutions
    speculative   devices of tokens, guessed before they are known
    traffic       bytes that a layer of experts sends, by formula and by trace
    paths         every path of a token through layers of a few modules, and the best within a budget
    caches        which experts stay in fast memory: LRU, LFU, predicted, Belady

numpy and scipy only: a policy reads a trace and never a model.
"""
