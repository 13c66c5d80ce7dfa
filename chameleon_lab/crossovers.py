"""The sizes at which one way to compute overtakes another, or costs too much memory: all results are the same.

Those marked "fitted" were measured on two cores of an AMD EPYC (AVX-512, VNNI, bfloat16) with torch 2.13.0, on 22
November 2026; `pytest -m slow tests/benchmarks/test_crossovers.py -s` prints what the present machine says beside each.
The others are bounds of memory, or chosen for GPUs, of which none was at hand.
"""

# The image tokenizer's networks, on a CPU
# From so many weights of a network on OpenVINO computes it, by the runtime's mode. With 2 to 7 million it is 0.8 to 1.0
# times as quick as torch in float32, and 1.6 to 3 times in bfloat16.
RUNTIME_WEIGHTS = {"exact": 2**23, "fast": 2**18}

# Attention of whole sequences, on a CPU
PLAIN_POSITIONS = 512  # fitted: up to so many positions plain products beat torch's fused kernel, about twofold
QUERY_BLOCK = 128  # fitted: queries at a time in them, so that keys behind a block cost nothing

# Attention of one query, on a CPU
FUSED_NUMBERS = 2**16  # fitted: up to so many numbers in a layer's keys, torch's kernel is faster for a single query

# Steps on a CPU
COMPARED_BYTES = 2**30  # of the weights of larger models a session's begin compares as many rows as make that up
COMPILED_ROWS = 16  # up to so many rows numba's kernels compute a step, where numba is installed

# Recorded steps, on a GPU
GRAPH_POSITIONS = 512  # a recorded step sees as far as the next multiple of this; then another is recorded
GRAPH_PATIENCE = 8  # steps before the first is recorded, since recording costs as much as so many (H200)

# A reply under way
PROMPT_POSITIONS = 512  # tokens of a prompt that each row is fed at a time, which bounds the memory that they take
CODES_AHEAD = {"cuda": 16}  # codes picked before the first is looked at, by kind of device; elsewhere one
RUN_OF_CODES, RUN_BYTES = 8, 2**27  # codes at most that numba's kernels draw in one call, and weights that it reads
WORDS_AHEAD = 4  # and words, which may end at any time: what was computed behind an end is lost

# Training on a GPU, which is quicker with large pieces: times what a CPU's cache holds, by kind of device
LOGITS_FACTOR = {"cuda": 16}  # of the head's logits: each piece costs a pass over the head's gradient
COMPILED_LOGITS = 4  # times as many where their losses are compiled, since these keep few copies of them (H200)
SCORES_FACTOR = {"cuda": 256}  # of attention's logits that monitors look at: else each costs more to start than to do

# Sampling, on a CPU
SORTED_SIZE = 4096  # fitted: from so many candidates on, sort a part of them first:
SORTED_PARTS = (256, 16)  # fitted: the likeliest 256th, then the likeliest 16th, and last of all the whole

# Quantized matrices
BYTE_ROWS = 128  # fitted: so many rows at a time are multiplied in bytes, never much slower than bfloat16
INT8_ROWS = 12  # fitted: up to so many rows torch's int8 kernel beats a product with the unpacked matrix
PACKED_AT_ONCE = 2**18  # weights packed at a time
UNPACKED_AT_ONCE = 2**24  # weights unpacked at a time
