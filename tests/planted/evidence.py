"""How claims are decided, their pages, the intervals of fits, and the numbers of reports."""

from tests.planted import Bug

STATISTICS, METHOD, TUNING = (f"experiments/claims/{name}.py" for name in ("statistics", "method", "tuning"))
CLAIMS, FIT, ISOFLOP = "experiments/claims/__init__.py", "experiments/scaling/fit.py", "experiments/scaling/isoflop.py"
SENT = "kernels/context_attention/bytes.py"
PLOT, REJUDGE = "experiments/claims/interval_plot.py", "experiments/claims/rejudge.py"
CURVE, DRAWN = "experiments/claims/held_out.py", "experiments/claims/curve_plot.py"
CONTRAST = "experiments/claims/contrast.py"
PLACES = "experiments/claims/places.py"
GROWTH = "experiments/claims/growth.py"
SLOPE, EXPONENTS = "experiments/scaling/slope.py", "experiments/claims/exponents.py"
VALUES = ("tests/experiments/claims/statistics_test.py",)
MEASURED = ("tests/experiments/claims/measures_test.py",)
EXACT = ("tests/experiments/claims/laws_test.py",)
DECIDED = ("tests/experiments/claims/method_test.py",)
PAGES = ("tests/experiments/claims/ledger_test.py",)
SLOPES = ("tests/experiments/claims/exponents_test.py",)
GROWN = ("tests/experiments/claims/growth_test.py",)
FITS = ("tests/experiments/scaling/values_test.py",)
MINIMA = ("tests/experiments/scaling/calibration_test.py::test_isoflop_intervals_cover_and_are_not_wide",)
LEDGER, STATEMENTS = "experiments/claims/ledger.py", "experiments/claims/pages.py"
GROUPS = "experiments/report/grouping.py"
AGAIN = ("tests/experiments/claims/ledger_test.py",)
COMPARED = ("tests/experiments/report/report_test.py",)
IDENTIFY, REPORT = "experiments/scaling/identify.py", "experiments/report/data.py"
KNOWN = ("tests/experiments/scaling/identify_test.py",)
NUMBERS = ("tests/experiments/report/numbers_test.py",)

BUGS = (
    Bug("crossing: drift by the whole time", STATISTICS, "places + drift * (t - before)", "places + drift * t", VALUES),
    Bug("crossing: one side only", STATISTICS, " + stats.norm.cdf((-end - mean) / sd)))", "))", VALUES),
    Bug("a look at one side's level", STATISTICS, "float(2 * stats.norm.sf(pocock", "float(stats.norm.sf(pocock", VALUES),
    Bug("power: n degrees of freedom", STATISTICS, "seeds - 1)), seeds - 1", "seeds - 1)), seeds", VALUES),
    Bug("half an interval for a whole one", STATISTICS, "2 * half_width(deviation, n, level) < effect", "half_width(deviation, n, level) < effect", VALUES),
    Bug("equal by one end", METHOD, "if -effect < low and high < effect:", "if -effect < low or high < effect:", DECIDED),
    Bug("early looks are taken at once", METHOD, "if last or high - low < effect or abs(mean) >= effect:", "if True:", DECIDED),
    Bug("every look has the whole level", METHOD, "return _level(self.looks)", "return LEVEL", DECIDED),
    Bug("the bound is not taken off the interval", METHOD, "ends[0] - bound, ends[1] - bound", "ends[0], ends[1]", DECIDED),
    Bug("a control at most is held at least", METHOD, 'else value <= stated["most"]', 'else value >= stated["most"]', DECIDED),
    Bug("a verdict is forgotten at the next look", CLAIMS, "if verdict != UNDECIDED and k not in decided:", "if verdict != UNDECIDED:", DECIDED),
    Bug("what tuning took is not counted", CLAIMS, "more = following is not None and before + hours", "more = following is not None and hours", DECIDED),
    Bug("arms are tuned on the verdict's rows", TUNING, "base.eval.skip = base.eval.rows", "base.eval.skip = 0", DECIDED),
    Bug("the worst rate is taken", TUNING, "np.argsort([-score.sign * value", "np.argsort([score.sign * value", DECIDED),
    Bug("an arm borrows its own best", TUNING, "for arm, (_, lender) in borrow", "for arm, (lender, _) in borrow", DECIDED),
    Bug("a twin keeps the borrowed rate", TUNING, " if k != lent[arm])", ")", DECIDED),
    Bug("a fall is from the first eighth", PLACES, 'named["eighth 2"] -', 'named["eighth 1"] -', MEASURED),
    Bug("what is not scored counts", PLACES, "np.where(scored, nats, 0.0)", "nats", MEASURED),
    Bug("eighths interleave", PLACES, "reshape(parts, -1).sum(1)", "reshape(-1, parts).sum(0)", MEASURED),
    Bug("skipped rows are scored", "experiments/program/inputs.py", "array[:begin] = array[end:] =", "array[end:] =", DECIDED),
    Bug("a deviation of the mean", REJUDGE, "deviation = half * math.sqrt(seeds)", "deviation = half", DECIDED),
    Bug("evidence is always judged anew", REJUDGE, "if _method(anew) != _method(row):", "if True:", DECIDED),
    Bug("evidence judged anew by its verdict alone", REJUDGE, '("effect", "looks", "control")', "()", DECIDED),
    Bug("errors are held to no bound", REJUDGE, 'sign * numbers.get("within", 0.0)', "0.0", DECIDED),
    Bug("more errors are better", REJUDGE, 'LESS = ("growth", "overtraining")', 'LESS = ("growth",)', DECIDED),
    Bug("gradients of keys stop before home", SENT, "2 * R * size.kv_sum", "2 * (R - 1) * size.kv_sum", EXACT),
    Bug("gathered gradients are as narrow as keys", SENT, "size.kv_sum if backward else 0", "size.kv if backward else 0", EXACT),
    Bug("results of dealt heads stay", SENT, "(2 * size.q + 2 * size.kv + (", "(size.q + 2 * size.kv + (", EXACT),
    Bug("dealt keys are not repeated", SENT, "K = K if u == 1 else math.lcm(K, u)", "K = K", EXACT),
    Bug("an arm that borrows is its lender", METHOD, "given[own] for name, (own, _)", "given[own] for name, (_, own)", (*DECIDED, *PAGES)),
    Bug("the interval of a figure is turned", PLOT, "value / span * (_RIGHT - _LEFT) / 2, 1)", "-value / span * (_RIGHT - _LEFT) / 2, 1)", PAGES),
    Bug("a rise from the first value", CURVE, "bits[-1] - lowest", "bits[-1] - bits[0]", MEASURED),
    Bug("the lowest value is the last", CURVE, "lowest = min(bits)", "lowest = bits[-1]", MEASURED),
    Bug("epochs of all splits", CURVE, '["splits"]["train"]["tokens"]', '["splits"]["valid"]["tokens"]', MEASURED),
    Bug("runs of other steps in one curve", CURVE, 'each["epochs"] != found[0]["epochs"]', "False", MEASURED),
    Bug("every row keeps the curves", CONTRAST, 'made[0].numbers["curves"]', 'made[-1].numbers["curves"]', MEASURED),
    Bug("curves upside down", DRAWN, "y = _BOTTOM - (value - low)", "y = _TOP + (value - low)", PAGES),
    Bug("a band as wide as its mean", DRAWN, "at(place, min(seeds))", "at(place, max(seeds))", PAGES),
    Bug("epochs as they are, not by logarithm", DRAWN, "math.log(place / least) / (math.log(most / least) or 1)", "(place - least) / (most - least)", PAGES),
    Bug("residuals are not smoothed", FIT, "self.smooth * rng.normal(size=groups)", "0 * rng.normal(size=groups)", FITS),
    Bug("the ratio of residuals upside down", FIT, "(own / theirs if theirs > 0 else 1.0) * (found - theta)", "(theirs / own if theirs > 0 else 1.0) * (found - theta)", FITS),
    Bug("degrees of freedom dropped", FIT, "widened = groups / max(groups - free, 1)", "widened = 1.0", FITS),
    Bug("smoothing widens", FIT, "math.sqrt(widened / (1 + (self.smooth / spread) ** 2))", "math.sqrt(widened)", FITS),
    Bug("an exponent is a falling slope's own sign", SLOPE, "return -slope,", "return slope,", SLOPES),
    Bug("a slope of losses as they are", SLOPE, "np.log(left) - np.log(left).mean()", "left - left.mean()", SLOPES),
    Bug("a slope in FLOPs as they are", SLOPE, "c, y = np.log(C) - np.log(C).mean()", "c, y = C - C.mean()", SLOPES),
    Bug("the floor is not taken off", SLOPE, "np.asarray(loss, float) - floor", "np.asarray(loss, float) - 0 * floor", SLOPES),
    Bug("a misfit of the losses, not of what is left", SLOPE, "(y - slope * c) ** 2", "y**2", SLOPES),
    Bug("a difference of exponents the other way", EXPONENTS, "(better - worse).tolist()", "(worse - better).tolist()", SLOPES),
    Bug("exponents by size, not by seed", EXPONENTS, "float).T for table in (flops, loss)", "float) for table in (flops, loss)", SLOPES),
    Bug("the largest exponent is the control's", EXPONENTS, "np.min(list(exponents", "np.max(list(exponents", SLOPES),
    Bug("all sizes have the smallest one's steps", EXPONENTS, 'tokens / (config.data', '3e4 / (config.data', SLOPES),
    Bug("a rate follows the base's, not the arm's", EXPONENTS, 'resolve(claim["base"], [values])', 'resolve(claim["base"], [{key: value for key, value in values.items() if "optimizer" not in key}])', SLOPES),
    Bug("tokens of each parameter but embeddings", EXPONENTS, 'counting.parameters(program)["total"]', 'counting.parameters(program)["non_embedding"]', SLOPES),
    Bug("steps forget the rows of a batch", EXPONENTS, "(config.data.batch_size * config.data.length)", "config.data.length", SLOPES),
    Bug("a page without its sizes", "experiments/claims/pages.py", 'for group in ("arms", "sizes", "lines"', 'for group in ("arms", "lines"', PAGES),
    Bug("all sizes are grown from the smallest", GROWTH, "for seed, row in zip(seeds, stages[-1]", "for seed, row in zip(seeds, stages[0]", GROWN),
    Bug("rivals have the FLOPs of the last size", GROWTH, 'flops = sum(rows[0]["flops"] for rows in stages)', 'flops = stages[-1][0]["flops"]', GROWN),
    Bug("a stage's curve begins at nothing", GROWTH, 'before += rows[0]["flops"]', "before = 0.0", GROWN),
    Bug("more loss of the grown is better", GROWTH, "np.subtract(losses[rival], losses[GROWN])", "np.subtract(losses[GROWN], losses[rival])", GROWN),
    Bug("a look pays for runs of later ones", CLAIMS, 'if config.get("seed") not in without:', "if True:", DECIDED),
    Bug("curves over FLOPs say epochs", DRAWN, 'over = "flops" if all', 'over = "epochs" if all', PAGES),
    Bug("isoFLOP: b is not the rest", ISOFLOP, '"b": (1 - high, 1 - low)}', '"b": (1 - low, 1 - high)}', MINIMA),
    Bug("a second run takes the seeds of the first", CLAIMS, "tuple(seed + first_seed for seed in seeds)", "seeds", AGAIN),
    Bug("a second run stands for the first", LEDGER, 'return stored | {', 'return record | {', AGAIN),
    Bug("a second run outlives its rows", LEDGER, 'if alike and "again" in stored', 'if "again" in stored', AGAIN),
    Bug("rows that do not hold are counted as held", STATEMENTS, "if first == HOLDS)", "if first != HOLDS)", AGAIN),
    Bug("a label by what follows from the settings", GROUPS, "key=lambda keys: max(values[key] for key in keys)", "key=len", COMPARED),
    Bug("groups by seeds, too", GROUPS, "if not _is_seed(key)}\n        found", "}\n        found", COMPARED),
    Bug("one run stands for all that other code made", GROUPS, "setdefault(said, []).append(run.name)", "__setitem__(said, [run.name])", ("tests/experiments/workdir/provenance_test.py",)),
    Bug("known exponents by an interval of one side", IDENTIFY, "stats.t.ppf(0.975, freedom)", "stats.t.ppf(0.95, freedom)", KNOWN),
    Bug("the worst exponent by its error as it stands", IDENTIFY, "errors[name] / max(abs(fit.values[name]), 1e-3)", "errors[name]", KNOWN),
    Bug("planted studies are one study", "experiments/scaling/calibration.py", "runs, study])", "runs])", ("tests/experiments/scaling/calibration_test.py::test_every_study_is_planted_anew",)),
    Bug("planted isoFLOP runs: C is N D", "experiments/scaling/calibration.py", '"tokens": flops / (6 * size)', '"tokens": flops / size', ("tests/experiments/scaling/calibration_test.py::test_every_study_is_planted_anew",)),
    Bug("report: Welch's interval is twice as wide", REPORT, "float(high - low) / 2", "float(high - low)", NUMBERS),
    Bug("report: between evaluations linear in FLOPs", REPORT, "np.interp(math.log(flops), np.log(x[keep]), y[keep])", "np.interp(flops, x[keep], y[keep])", NUMBERS),
    Bug("runs that were started over are fitted", "experiments/scaling/io.py", 'if workdir.name.startswith(f"{files.REPLACED}-"):', "if False:", FITS),
    Bug("labels of runs that were not selected", "experiments/scaling/io.py", "{name: tuple(values[i] for i in kept) for name, values in self.labels.items()}", "self.labels", FITS),
)  # fmt: skip
