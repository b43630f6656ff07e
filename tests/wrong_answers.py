"""Typical wrong answers to the notebooks' exercises, each with the hint that must meet it.

BANK[notebook/cell][mistake] = (what stands in place of the solution, words of the hint).
"""

BANK = {
    "01_text_to_image_ldm/ex1": {
        "the image instead": (
            "return alpha**0.5 * noised - (1 - alpha) ** 0.5 * velocity",
            "that is the image",
        ),
        "sign": (
            "return (1 - alpha) ** 0.5 * noised - alpha**0.5 * velocity",
            "the noise has a plus",
        ),
        "roots exchanged": (
            "return alpha**0.5 * noised + (1 - alpha) ** 0.5 * velocity",
            "the other way round",
        ),
        "no roots": ("return (1 - alpha) * noised + alpha * velocity", "square roots"),
        "one alpha for all": ("return 0.8 * noised + 0.6 * velocity", "at alpha = 0"),
    },
    "01_text_to_image_ldm/ex2": {
        "sign": ("return away + scale * (away - towards)", "the wrong way"),
        "arguments exchanged": ("return towards + scale * (away - towards)", "the wrong way"),
        "difference alone": ("return scale * (towards - away)", "add it to away"),
        "begins at the prompt": ("return towards + scale * (towards - away)", "scale 1 is"),
        "prompt added whole": ("return away + scale * towards", "scale 1 is the prompt"),
        "prompt scaled": ("return scale * towards", "scale the difference"),
        "scale ignored": ("return towards", "three times the difference"),
    },
    "01_text_to_image_ldm/ex3": {
        "upside down": ("return channels * (size // factor) ** 2 / (3 * size**2)", "fewer: the"),
        "positions": ("return size**2 / (size // factor) ** 2", "share of positions"),
        "latents' channels": ("return 3 * size**2 / (size // factor) ** 2", "count the channels"),
        "one colour": ("return size**2 / (channels * (size // factor) ** 2)", "three numbers"),
        "one side": ("return 3 * size**2 / (channels * (size // factor))", "both sides"),
        "factor not squared": ("return 3 * factor / channels", "square it"),
        "constant": ("return 48", "more channels"),
        "one size": ("return 3 * 128**2 / (channels * (size // factor) ** 2)", "on the size"),
    },
    "02_attention_extraction/ex1": {
        "transposed": ("return (k @ q.T / q.shape[-1] ** 0.5).softmax(dim=-1)", "are rows"),
        "wrong axis": ("return (q @ k.T / q.shape[-1] ** 0.5).softmax(dim=0)", "over the tokens"),
        "no softmax": ("return q @ k.T / q.shape[-1] ** 0.5", "softmax over the tokens"),
        "not divided": ("return (q @ k.T).softmax(dim=-1)", "divide by the square root"),
        "no root": ("return (q @ k.T / q.shape[-1]).softmax(dim=-1)", "the square root of D"),
        "root of the tokens": (
            "return (q @ k.T / k.shape[0] ** 0.5).softmax(dim=-1)",
            "the square root of D",
        ),
    },
    "02_attention_extraction/ex2": {
        "MiB": (
            "return 4 * tokens * images * sum(h * w for h, w in sizes) / 2**20",
            "bytes, not MiB",
        ),
        "values": ("return tokens * images * sum(h * w for h, w in sizes)", "has 4 bytes"),
        "bits": ("return 32 * tokens * images * sum(h * w for h, w in sizes)", "has 4 bytes"),
        "largest only": (
            "return 4 * tokens * images * max(h * w for h, w in sizes)",
            "add up all resolutions",
        ),
        "steps": (
            "return 25 * 4 * tokens * images * sum(h * w for h, w in sizes)",
            "the number of steps does not count",
        ),
        "one image": ("return 4 * tokens * sum(h * w for h, w in sizes)", "every image"),
        "squares": ("return 4 * tokens * images * sum(h**2 for h, w in sizes)", "h times w"),
    },
    "02_attention_extraction/ex3": {
        "offsets": (
            "return [span for span in offsets if span[0] < end and span[1] > begin]",
            "positions, not their offsets",
        ),
        "end included": (
            "return [i for i, (a, b) in enumerate(offsets) if a <= end and b > begin]",
            "the end is not included",
        ),
        "first token": (
            "return [i for i, (a, b) in enumerate(offsets) if a <= begin < b]",
            "three tokens spell",
        ),
        "contained": (
            "return [i for i, (a, b) in enumerate(offsets) if a >= begin and b <= end]",
            "longer than the word",
        ),
        "begins inside": (
            "return [i for i, (a, b) in enumerate(offsets) if begin <= a < end]",
            "longer than the word",
        ),
        "start token": (
            "return [i for i, (a, b) in enumerate(offsets) if a < end and b >= begin]",
            "it overlaps nothing",
        ),
    },
    "03_cas_and_aas/ex1": {
        "both values": (
            "return count_by_hand((map > map.quantile(0.7)).nonzero().double(), eps=1.5)",
            "the clusters are the first",
        ),
        "the noise": (
            "return count_by_hand((map > map.quantile(0.7)).nonzero().double(), eps=1.5)[1]",
            "the clusters are the first",
        ),
        "eps of the defaults": (
            "return count_by_hand((map > map.quantile(0.7)).nonzero().double())[0]",
            "is eps still 0.5",
        ),
        "coordinates in [0, 1]": (
            "places = (map > map.quantile(0.7)).nonzero().double() / len(map)\n"
            "return count_by_hand(places, eps=1.5)[0]",
            "places in pixels",
        ),
        "the dark pixels": (
            "return count_by_hand((map < map.quantile(0.7)).nonzero().double(), eps=1.5)[0]",
            "pixels above the quantile",
        ),
        "fixed brightness": (
            "return count_by_hand((map > 0.7).nonzero().double(), eps=1.5)[0]",
            "a quantile, not a brightness",
        ),
        "corners do not touch": (
            "return count_by_hand((map > map.quantile(0.7)).nonzero().double(), eps=1)[0]",
            "corners touch",
        ),
        "every pixel a core": (
            "places = (map > map.quantile(0.7)).nonzero().double()\n"
            "return count_by_hand(places, eps=1.5, min_samples=1)[0]",
            "a core has 5 pixels",
        ),
    },
    "03_cas_and_aas/ex2": {
        "not rounded": ("smallest_gain = 5.889", "a whole number"),
        "Eq. 1": ("smallest_gain = 1", "gain 1 is Eq. 1"),
        "upper end alone": ("smallest_gain = 5", "upper minus lower"),
        "tanh(g/2)": ("smallest_gain = 3", "too small"),
        "one too many": ("smallest_gain = 7", "a smaller gain"),
        "saturated": ("smallest_gain = 10", "a smaller gain"),
    },
    "03_cas_and_aas/ex3": {
        "sign": (
            "inside, outside = map[mask], map[~mask]\n"
            "noise = inside.var(correction=0) + outside.var(correction=0)\n"
            "return float((outside.mean() - inside.mean()) / noise.sqrt())",
            "brighter inside",
        ),
        "absolute value": (
            "inside, outside = map[mask], map[~mask]\n"
            "noise = inside.var(correction=0) + outside.var(correction=0)\n"
            "return float((inside.mean() - outside.mean()).abs() / noise.sqrt())",
            "no absolute value",
        ),
        "background only": (
            "inside, outside = map[mask], map[~mask]\n"
            "return float((inside.mean() - outside.mean()) / outside.std(correction=0))",
            "both regions",
        ),
        "no root": (
            "inside, outside = map[mask], map[~mask]\n"
            "noise = inside.var(correction=0) + outside.var(correction=0)\n"
            "return float((inside.mean() - outside.mean()) / noise)",
            "take the root",
        ),
        "sum of deviations": (
            "inside, outside = map[mask], map[~mask]\n"
            "noise = inside.std(correction=0) + outside.std(correction=0)\n"
            "return float((inside.mean() - outside.mean()) / noise)",
            "do not add standard deviations",
        ),
        "N - 1": (
            "inside, outside = map[mask], map[~mask]\n"
            "noise = inside.var() + outside.var()\n"
            "return float((inside.mean() - outside.mean()) / noise.sqrt())",
            "divide by N",
        ),
    },
    "04_extractor_pretraining/ex1": {
        "guesses all wrong": (
            "guessed = (bits - learnt) / bits\nreturn 1 - guessed, guessed * math.log(2)",
            "guesses are right half the time",
        ),
        "order": (
            "guessed = (bits - learnt) / bits\nreturn guessed * math.log(2), 1 - guessed / 2",
            "the accuracy comes first",
        ),
        "guesses all right": (
            "return 1, (bits - learnt) / bits * math.log(2)",
            "half of the guesses are right",
        ),
        "sum": (
            "return (learnt + bits) / 2 / bits, (bits - learnt) * math.log(2)",
            "not their sum",
        ),
        "base 2": (
            "guessed = (bits - learnt) / bits\nreturn 1 - guessed / 2, guessed * math.log2(2)",
            "the natural logarithm",
        ),
        "above 1": (
            "return 0.5 + learnt / bits, (bits - learnt) / bits * math.log(2)",
            "all bits learnt",
        ),
        "constant": ("return 0.5, math.log(2)", "all bits learnt"),
        "maximum": (
            "return max(0.5, learnt / bits), (bits - learnt) / bits * math.log(2)",
            "three quarters are right",
        ),
        "48 bits": (
            "guessed = (48 - learnt) / 48\nreturn 1 - guessed / 2, guessed * math.log(2)",
            "the number of bits that is given",
        ),
    },
    "04_extractor_pretraining/ex3": {
        "ways, not shares": (
            "for needed in range(bits + 1):\n"
            "    if sum(math.comb(bits, k) for k in range(needed, bits + 1)) <= rate:\n"
            "        return needed",
            "divide the number of ways",
        ),
        "lower tail": (
            "for needed in range(bits + 1):\n"
            "    if sum(math.comb(bits, k) for k in range(needed + 1)) / 2**bits <= rate:\n"
            "        return needed",
            "not from 0 to k",
        ),
        "more than k": (
            "for needed in range(bits + 1):\n"
            "    ways = sum(math.comb(bits, k) for k in range(needed + 1, bits + 1))\n"
            "    if ways / 2**bits <= rate:\n"
            "        return needed",
            "the tail includes k",
        ),
        "one too many": (
            "for needed in range(bits, -1, -1):\n"
            "    if sum(math.comb(bits, k) for k in range(needed, bits + 1)) / 2**bits > rate:\n"
            "        return needed + 2",
            "41 are needed",
        ),
        "exactly k": (
            "for needed in range(bits, -1, -1):\n"
            "    if math.comb(bits, needed) / 2**bits > rate:\n"
            "        return needed + 1",
            "exactly k is not enough",
        ),
        "48 bits": (
            "for needed in range(49):\n"
            "    if sum(math.comb(48, k) for k in range(needed, 49)) / 2**48 <= rate:\n"
            "        return needed",
            "the number of bits that is given",
        ),
        "never None": (
            "for needed in range(bits):\n"
            "    if sum(math.comb(bits, k) for k in range(needed, bits + 1)) / 2**bits <= rate:\n"
            "        return needed\n"
            "return bits",
            "return None",
        ),
    },
    "05_decoder_finetuning/ex1": {
        "limits exchanged": (
            "change = 1 + growth if accuracy >= read_well else 1 / (1 + growth)\n"
            "return max(min(quality * change, lowest), highest)",
            "min goes with the highest",
        ),
        "growth alone": (
            "change = growth if accuracy >= read_well else 1 / growth\n"
            "return min(max(quality * change, lowest), highest)",
            "not by growth",
        ),
        "the wrong way": (
            "change = 1 + growth if accuracy < read_well else 1 / (1 + growth)\n"
            "return min(max(quality * change, lowest), highest)",
            "quality should weigh more",
        ),
        "never down": (
            "return min(max(quality * (1 + growth), lowest), highest)",
            "quality should weigh less",
        ),
        "more than": (
            "change = 1 + growth if accuracy > read_well else 1 / (1 + growth)\n"
            "return min(max(quality * change, lowest), highest)",
            "includes .95",
        ),
        "added": (
            "change = growth if accuracy >= read_well else -growth\n"
            "return min(max(quality + change, lowest), highest)",
            "multiply, not add",
        ),
        "limits first": (
            "change = 1 + growth if accuracy >= read_well else 1 / (1 + growth)\n"
            "return min(max(quality, lowest), highest) * change",
            "limits last",
        ),
        "no lower limit": (
            "change = 1 + growth if accuracy >= read_well else 1 / (1 + growth)\n"
            "return min(quality * change, highest)",
            "never below",
        ),
        "1 - growth": (
            "change = 1 + growth if accuracy >= read_well else 1 - growth\n"
            "return min(max(quality * change, lowest), highest)",
            "divide, not subtract",
        ),
        "its own limit": (
            "change = 1 + growth if accuracy >= 0.95 else 1 / (1 + growth)\n"
            "return min(max(quality * change, lowest), highest)",
            "use read_well",
        ),
    },
    "05_decoder_finetuning/ex2": {
        "not in decibels": (
            "return math.sqrt(weights.message * math.log(2) / weights.preservation)",
            "give it in decibels",
        ),
        "sign": (
            "r = math.sqrt(weights.message * math.log(2) / weights.preservation)\n"
            "return 20 * math.log10(r)",
            "mind the sign",
        ),
        "upside down": (
            "r = math.sqrt(weights.preservation / (weights.message * math.log(2)))\n"
            "return -20 * math.log10(r)",
            "which of the weights divides",
        ),
        "natural logarithm": (
            "r = math.sqrt(weights.message * math.log(2) / weights.preservation)\n"
            "return -20 * math.log(r)",
            "base 10",
        ),
        "no root": (
            "return -20 * math.log10(weights.message * math.log(2) / weights.preservation)",
            "not of r squared",
        ),
        "10 of the root": (
            "r = math.sqrt(weights.message * math.log(2) / weights.preservation)\n"
            "return -10 * math.log10(r)",
            "10 belongs to r squared",
        ),
        "no log 2": (
            "return -20 * math.log10(math.sqrt(weights.message / weights.preservation))",
            "costs log 2",
        ),
        "one modality": (
            "return -20 * math.log10(math.sqrt(7.5 * math.log(2) / 3900))",
            "the weights that are given",
        ),
    },
    "05_decoder_finetuning/ex3": {
        "negative": ("plus_minus, on_off = -0.04, 0.04", "never negative"),
        "variation of the difference": ("plus_minus, on_off = 0.08, 0.04", "which?"),
        "exchanged": ("plus_minus, on_off = 0.04, 0.0", "which?"),
        "sum": ("plus_minus, on_off = 0.0, 3 * 2 * 56 * 0.02", "not a sum"),
        "half the jump": ("plus_minus, on_off = 0.02, 0.04", "no jump in the size"),
        "stripes": (
            "board = (torch.arange(8) % 2).float().expand(1, 3, 8, 8)\n"
            "plus_minus = float(total_variation_loss(0.02 * (2 * board - 1)))\n"
            "on_off = float(total_variation_loss(0.02 * board))",
            "across and down",
        ),
    },
    "06_evaluation/ex1": {
        "one threshold for each": (
            "return images * next(k for k in range(bits + 1) if tail(k, bits) <= chance)",
            "41 in every image asks too much",
        ),
        "a share": (
            "n = images * bits\nreturn next(k for k in range(n + 2) if tail(k, n) <= chance) / n",
            "not a share of the bits",
        ),
        "one image": (
            "return next(k for k in range(bits + 1) if tail(k, bits) <= chance)",
            "pool the bits of all",
        ),
        "48 coins": (
            "return next(k for k in range(images * bits + 1) if tail(k) <= chance)",
            "pool the bits of all",
        ),
        "from 0": (
            "n = images * bits\nreturn next(k for k in range(n) if 1 - tail(k + 1, n) > chance)",
            "not from 0",
        ),
        "more than k": (
            "n = images * bits\nreturn next(k for k in range(n + 1) if tail(k + 1, n) <= chance)",
            "k included",
        ),
        "exactly k": (
            "n = images * bits\n"
            "return next(k for k in range(n // 2, n) if math.comb(n, k) <= chance * 2**n)",
            "exactly k is not enough",
        ),
        "chance shared out": (
            "each = chance ** (1 / images)\n"
            "return images * next(k for k in range(bits + 1) if tail(k, bits) <= each)",
            "one test over all the bits",
        ),
        "always 48 bits": (
            "n = images * 48\nreturn next(k for k in range(n + 2) if tail(k, n) <= chance)",
            "wrong for 2 x 32 bits",
        ),
    },
    "06_evaluation/ex2": {
        "accuracy": ("return float(right.float().mean())", "not the accuracy"),
        "number": (
            "return int((right.sum(dim=1) >= threshold(right.shape[1], chance)).sum())",
            "not their number",
        ),
        "wrong axis": (
            "needed = threshold(right.shape[1], chance)\n"
            "return float((right.sum(dim=0) >= needed).double().mean())",
            "dim=1",
        ),
        "every bit": ("return float(right.all(dim=1).double().mean())", "43 match in every image"),
        "averaged first": (
            "needed = threshold(right.shape[1], chance)\n"
            "return float(right.sum(dim=1).double().mean() >= needed)",
            "count per image",
        ),
        "chance as a share of bits": (
            "return float((right.double().mean(dim=1) >= chance).double().mean())",
            "not enough at 1e-6",
        ),
        "more than": (
            "needed = threshold(right.shape[1], chance)\n"
            "return float((right.sum(dim=1) > needed).double().mean())",
            "just enough",
        ),
    },
    "06_evaluation/ex3": {
        "not rounded": ("left = 512 * 0.5 * math.sqrt(0.7)", "a whole number"),
        "crop by area": ("left = int(512 * math.sqrt(0.5) * math.sqrt(0.7))", "half of the side"),
        "resize by side": ("left = int(512 * 0.5 * 0.7)", "70 % of the area"),
        "rounded up": ("left = math.ceil(512 * 0.5 * math.sqrt(0.7))", "rounded down"),
        "exchanged": ("left = int(512 * math.sqrt(0.5) * 0.7)", "the side for the crop"),
        "nothing resized": ("left = 512 // 2", "and then it shrinks"),
    },
    "07_diagnostic_impact/ex1": {
        "count": ("return int(((after > 0.5) & (before <= 0.5)).sum())", "not their number"),
        "both ways": (
            "return float(((after > 0.5) != (before > 0.5)).double().mean())",
            "a vanished finding is no new one",
        ),
        "found after": ("return float((after > 0.5).double().mean())", "not have been there"),
        "vanishing": (
            "return float(((before > 0.5) & (after <= 0.5)).double().mean())",
            "of those that vanish",
        ),
        "half is a finding": (
            "return float(((after > 0.5) & (before < 0.5)).double().mean())",
            "one half itself",
        ),
    },
    "07_diagnostic_impact/ex2": {
        "change": ("return float(100 * (after - before).abs().mean())", "no harm"),
        "shift": ("return float(100 * (after - before).mean())", "a fall is good"),
        "sign": (
            "return float(100 * ((before - truth).abs() - (after - truth).abs()).mean())",
            "error after minus error before",
        ),
        "not in percent": (
            "return float(((after - truth).abs() - (before - truth).abs()).mean())",
            "times 100",
        ),
        "sum": (
            "return float(100 * ((after - truth).abs() - (before - truth).abs()).sum())",
            "a mean over images",
        ),
    },
    "07_diagnostic_impact/ex3": {
        "nothing": ("bound = 0.0", "does not mean that there are none"),
        "the doubt": ("bound = 0.05", "is the doubt"),
        "the other tail": ("bound = 1 - 0.95 ** (1 / 500)", "not 0.95"),
        "one in n": ("bound = 1 / 500", "about three in n"),
        "rule of three": ("bound = 3 / 500", "put it back in"),
    },
    "08_ablations_and_controls/ex1": {
        "number": ("return map.square().mean().sqrt()", "a map of the same shape"),
        "the map itself": ("return map", "the same value everywhere"),
        "equal mean": ("return torch.full_like(map, float(map.mean()))", "that is the equal mean"),
        "largest": ("return torch.full_like(map, float(map.max()))", "not the largest"),
        "no root": ("return torch.full_like(map, float(map.square().mean()))", "take the root"),
        "constant": ("return torch.full_like(map, 0.2)", "for any map"),
    },
    "08_ablations_and_controls/ex2": {
        "every image": (
            "return bool((apart > 0).all() or (apart < 0).all())",
            "mean over the images first",
        ),
        "mean over seeds": ("return bool(apart.mean() != 0)", "the mean over seeds hides it"),
        "above only": ("return bool((apart.mean(dim=1) > 0).all())", "agree as well"),
        "tensor": (
            "means = apart.mean(dim=1)\nreturn (means > 0).all() | (means < 0).all()",
            "a bool, not a tensor",
        ),
        "zero counts": (
            "means = apart.mean(dim=1)\nreturn bool((means >= 0).all() or (means <= 0).all())",
            "has no sign",
        ),
    },
    "08_ablations_and_controls/ex3": {
        "the hits": ("expected = 13 * 0.95", "the misses"),
        "of one": ("expected = 0.05", "of all thirteen"),
        "at least one": ("expected = 1 - 0.95**13", "at least one"),
        "all claims": ("expected = 17 * 0.05", "four claims say unchanged"),
        "both sides": ("expected = 13 * 0.1", "five in a hundred"),
    },
    "09_attacks_beyond_the_paper/ex1": {
        "the row": (
            "fit = [r for r in rows if r['true_positive_rate'] <= accepted]\n"
            "return max(fit, key=lambda r: r['psnr'])",
            "not the whole row",
        ),
        "detection ignored": ("return max(r['psnr'] for r in rows)", "look at the detection"),
        "the worst": (
            "return min(r['psnr'] for r in rows if r['true_positive_rate'] <= accepted)",
            "the best quality, not the worst",
        ),
        "less than": (
            "return max(r['psnr'] for r in rows if r['true_positive_rate'] < accepted)",
            "at most, not less than",
        ),
        "no price": (
            "return max(r['psnr'] for r in rows if r['true_positive_rate'] <= accepted)",
            "leave rows out whose psnr is None",
        ),
        "no attack": (
            "return max(r['psnr'] for r in rows\n"
            "           if r['psnr'] and r['true_positive_rate'] <= accepted)",
            "the answer is None",
        ),
        "zero for none": (
            "return max((r['psnr'] for r in rows\n"
            "            if r['psnr'] and r['true_positive_rate'] <= accepted), default=0)",
            "the answer is None",
        ),
    },
    "09_attacks_beyond_the_paper/ex2": {
        "standard deviations added": ("return mark + detail / math.sqrt(n)", "variances add"),
        "variance": ("return mark**2 + detail**2 / n", "not the variance"),
        "mark averaged too": ("return math.sqrt((mark**2 + detail**2) / n)", "does not weaken it"),
        "detail kept": ("return math.sqrt(mark**2 + detail**2)", "averaging weakens the detail"),
        "divided by n": ("return math.sqrt(mark**2 + (detail / n) ** 2)", "divides the detail's"),
        "root of n": (
            "return math.sqrt(mark**2 + detail**2 / math.sqrt(n))",
            "divides the detail's",
        ),
        "detail alone": ("return math.sqrt(detail**2 / n)", "of one image"),
    },
    "09_attacks_beyond_the_paper/ex3": {
        "the share's power": (
            "return math.ceil(math.log(0.05) / math.log(share))",
            "not share**n",
        ),
        "the other tail": (
            "return math.ceil(math.log(0.95) / math.log(1 - share))",
            "not of seeing one",
        ),
        "one over the share": ("return round(1 / share)", "not one over the share"),
        "rule of three": ("return round(3 / share)", "a rule of thumb"),
        "rounded down": ("return int(math.log(0.05) / math.log(1 - share))", "round up"),
        "not rounded": ("return math.log(0.05) / math.log(1 - share)", "a whole number"),
        "both tails": (
            "return math.ceil(math.log(0.025) / math.log(1 - share))",
            "the smallest n",
        ),
        "one share": ("return 299", "depends on the share"),
    },
}
