"""Claim: a predictor of boundaries for each script makes texts of equal content cost equally many segments.

    python main.py --mode=claim --config=configs/claims/scripts.py --workdir=runs/claims/scripts --jobs=1

Ahia et al. 2024 (MAGNET, arXiv:2407.08818): models of bytes with one predictor of boundaries cut scripts of two bytes a
letter into more segments than Latin, as subword tokenizers do; with a predictor and a prior for each script, set from
the bytes that equal contents take, segments are as many in all, and the model is no worse. Here: messages of programs
in English, Greek and Russian that gettext catalogues of the system translate, mixed as they are. MAGNET and its one
predictor aim at equally many segments of all texts together; BPE of 512 ids costs as many FLOPs.

The control: all held-out texts together have fewer bits a byte under MAGNET than counts of neighbouring bytes give.

Disparity is a difference of shares and not the ratio that was stated first: with one predictor a seed left English with
no segments at all, and a ratio has no end.

Expect: as published. Seen: all arms are far ahead of counts of neighbouring bytes. With one predictor segments of
Greek, English and Russian differ much more in each of three seeds, and by unlike amounts, so that three seeds decide
nothing; bits a character are equal. Greek takes 2.13 times and Russian 1.97 times the bytes of English, of 8,449
messages that all three languages have. Cost: 15 runs of 150 steps of 4 x 256 bytes, some 12 CPU minutes.
"""

from configs.claims import small
from configs.claims.segments import segmented

STEPS = 150


def get_claim():
    """The claim, for the check `scripts`."""
    config = small(STEPS, log_every=50, rows=64)
    config.model.update({"num_layers": 4, "init": "fan_in"})
    config.data.update({"length": 256, "batch_size": 4})
    config.eval.batch_size = 16
    config.optimizer.update({"name": "muon", "learning_rate": 2e-2})
    four = {"model.segmented.magnet.priors": ("0.2", "0.1", "0.1", "0.2")}  # the texts say them to four places
    bpe = {"data.tokenizer": "bpe", "data.vocab_size": 512, "model.width": 96, "data.length": 112}

    def row(measure, better, worse, statement, published, **more):
        return {
            "measure": measure, "better": better, "worse": worse, "statement": statement, "published": published, **more
        }  # fmt: skip

    return {
        "statement": "A predictor for each script cuts texts of equal content into equally many segments",
        "source": "Ahia et al. 2024, arXiv:2407.08818",
        "published": "less disparity of segments between scripts than subwords and one predictor, and as good models",
        "family": "tokens",
        "check": "scripts",
        "base": config,
        "catalogues": "/usr/share/locale",
        "languages": ("el", "ru"),
        "together": 12,
        "rate": 0.2,
        "arms": {"magnet": segmented("magnet") | four, "one predictor": segmented("magnet"), "bpe": bpe},
        "by_script": "magnet",
        "at_once": "one predictor",
        "equal_to": "magnet",
        "score": "bits_per_byte",
        "tune": {"optimizer.learning_rate": (7e-3, 2e-2)},
        "contrasts": [
            row("disparity", "magnet", "one predictor", "Segments of equal contents differ less between scripts with a "
                "predictor for each than with one", "one predictor cuts other scripts more finely", effect=0.1),
            row("disparity", "magnet", "bpe", "They differ less than tokens of BPE do",
                "subword tokenizers cut other scripts more finely", effect=0.1),
            row("bits_others", "magnet", "one predictor", "A predictor for each script leaves fewer bits a character "
                "of Greek and Russian", "no worse on tasks", effect=0.2),
            row("bits_english", "magnet", "one predictor", "A predictor for each script leaves fewer bits a character "
                "of English", "no worse on tasks", effect=0.2),
        ],
        "effect": 0.2,
        "control": {
            "says": "bits a byte of MAGNET above those of counts of neighbouring bytes",
            "reads": ("beyond_pairs", "magnet"), "most": 0.0,
        },
        "looks": (3,),
        "hours": 1.0,
        "seeds": (0, 1, 2),
    }  # fmt: skip
