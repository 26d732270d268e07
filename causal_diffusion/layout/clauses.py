"""Who sees whom, by kind of layout, drawn.

A sequence is a row of frames, cut into *blocks* of ``block`` frames (the first one may be shorter, ``first``). Its
tokens live in named *streams* that meet only in attention. Every frame of every stream carries ids: its role, its
index in time, the noisy copy it belongs to, the stage of its noise level, and by how many blocks it leads its index;
the tokens of a frame share them. From these ids alone ``Layout.visible`` says whether a query may see a key, during
training (all blocks at once), while denoising (blocks in flight against cache slots) and while committing (a clean
block against cache slots). That it is the *same* predicate is why a cached stream equals the uncached forward.

Masks are drawn with queries as rows and keys as columns, one letter per block (per frame where a title says so), ``#``
visible and ``.`` hidden.

block_causal (diffusion forcing, Chen et al. 2024, arXiv 2407.01392): one stream, every block at its own level::

          0 1 2 3
        0 # . . .
        1 # # . .
        2 # # # .
        3 # # # #

teacher_forcing (skip-causal, ACDiT, Hu et al. 2024, arXiv 2412.07720): a clean copy beside the noisy sequence. A
noisy block sees the clean past and itself, never the clean copy of itself. Nobody reads the last clean block, so
training drops it. With ``copies`` several noisy sequences, each at its own levels, share one clean pass::

            clean   noisy
            0 1 2   0 1 2 3
        c0  # . .   . . . .
        c1  # # .   . . . .
        c2  # # #   . . . .
        n0  . . .   # . . .
        n1  # . .   . # . .
        n2  # # .   . . # .
        n3  # # #   . . . #

knot, by frame: every noisy block is denoised together with the first frames of the next one, its knot (k, Knot
Forcing, Xiao et al. 2025, arXiv 2512.21734). They count to the block that they are denoised with: it sees them, and
they see what it sees. The block that owns these indices has noisy frames of its own, and neither sees the other's.
Blocks of 2 with a knot of 1, the last block without one::

            clean     noisy
            0 1 2 3   0 1 2   2 3 4   4 5
        c0  # # . .   . . .   . . .   . .
        c1  # # . .   . . .   . . .   . .
        c2  # # # #   . . .   . . .   . .
        c3  # # # #   . . .   . . .   . .
        n0  . . . .   # # #   . . .   . .
        n1  . . . .   # # #   . . .   . .
        k2  . . . .   # # #   . . .   . .
        n2  # # . .   . . .   # # #   . .
        n3  # # . .   . . .   # # #   . .
        k4  # # . .   . . .   # # #   . .
        n4  # # # #   . . .   . . .   # #
        n5  # # # #   . . .   . . .   # #

window and sinks narrow every kind, by the frames *before the query's block* (block 1, window 2, sinks 1)::

          0 1 2 3 4 5
        3 # # # # . .      sink 0, window 1 2, itself
        4 # . # # # .      sink 0, window 2 3, itself
        5 # . . # # #      sink 0, window 3 4, itself

bidirectional_window: clean blocks (c) are causal, the noisy ones in flight (n) see each other and the clean ones before
them (Rolling Forcing, Liu et al. 2025, arXiv 2509.25161). In training, blocks ahead of the window are absent, as a
stream does not know them yet. What a noisy query remembers counts from the *first* noisy block. Window 2::

            c0 c1 c2 c3 n4 n5
        c0  #  .  .  .  .  .
        c1  #  #  .  .  .  .
        c2  #  #  #  .  .  .
        c3  .  #  #  #  .  .
        n4  .  .  #  #  #  #
        n5  .  .  #  #  #  #

full (DFoT, Song et al. 2025, arXiv 2502.06764): one stream, everybody sees everybody. Nothing can be cached::

          0 1 2 3
        0 # # # #
        1 # # # #
        2 # # # #
        3 # # # #

frame_causal, by frame: causal inside blocks too. They are denoised together and still do not look ahead (ViD-GPT,
Gao et al. 2024, arXiv 2406.10981). Blocks of 3 after a first one of 1 frame::

          0 1 2 3 4
        0 # . . . .
        1 # # . . .
        2 # # # . .
        3 # # # # .
        4 # # # # #

partial_prefix, by frame: the clean prefix (c) is frame-causal, the noisy block (n) that follows it sees all of the
prefix and all of itself (Ca2-VDM's variant, Gao et al. 2024, arXiv 2411.16375)::

            c0 c1 c2 n3 n4
        c0  #  .  .  .  .
        c1  #  #  .  .  .
        c2  #  #  #  .  .
        n3  #  #  #  #  #
        n4  #  #  #  #  #

prefix, by frame: the same with a prefix that sees all of itself, as in prefix language models. A later prefix frame
changes the earlier ones, so nothing can be cached::

            c0 c1 c2 n3 n4
        c0  #  #  #  .  .
        c1  #  #  #  .  .
        c2  #  #  #  .  .
        n3  #  #  #  #  #
        n4  #  #  #  #  #

Other streams: context tokens (x: registers, class or text tokens) are seen by all and see only context; a reference
frame (r) is seen by all and sees only itself (EasyControl, Zhang et al. 2025, arXiv 2503.07027; Knot Forcing); coarse
history (h: far frames in few, large tokens, FAR, Gu et al. 2025, arXiv 2503.19325) is causal and lies behind the
window::

            x r h0 h1 n2 n3
        x   # . .  .  .  .
        r   . # .  .  .  .
        h0  # # #  .  .  .
        h1  # # #  #  .  .
        n2  # # #  #  #  .
        n3  # # #  #  #  #

coarse says how far history reaches: ``coarse`` frames before the window of a fine query, and as many before the block
of a coarse one, which knows nothing else. Neither windows nor ranges hide it. Window 1, coarse 2::

            h0 h1 h2 h3 n4 n5
        h0  #  .  .  .  .  .
        h1  #  #  .  .  .  .
        h2  #  #  #  .  .  .
        h3  .  #  #  #  .  .
        n4  .  #  #  #  #  .
        n5  .  .  #  #  #  #

ranges: how many blocks a query sees, its own included, by the stage of its level (MAGI-1, arXiv 2505.13211). The
noisier, the farther. For ranges 4, 2 a noisy block 3 sees all, one that is half done only its neighbour::

               0 1 2 3
        noisy  # # # #
        half   . . # #

Factorised attention asks the same predicate of fewer keys: of the same cell (along time) or the same frame (in
space), see ``Layout.token_mask``.
"""

from typing import Any

from causal_diffusion.layout.ids import CLEAN, COARSE, CONTEXT, NOISY, REFERENCE, Ids

Array = Any
NEVER = 1 << 30  # later than any frame


def narrowed(layout, q: Ids, k: Ids, q_block: Array) -> Array | bool:
    """What window, sinks, ranges and coarse leave; ids and block indices that broadcast to [..., Tq, Tk]."""
    seen, start = True, q_block * layout.block - layout.pad
    kept = (k.frame < layout.sinks - layout.pad) | (k.role == COARSE)
    if layout.window:
        near = k.frame >= start - layout.window
        if layout.kind == "bidirectional_window":
            near = near | (q.role == NOISY) & (k.frame >= first_noisy(layout, k) - layout.window)
        seen = near | kept
    if layout.ranges:
        reach = 0
        for stage, blocks in enumerate(layout.ranges):
            reach = reach + blocks * (q.stage == stage)
        seen = seen & ((q_block - layout.block_of(k.frame, k.lead) < reach) | kept)
    if layout.coarse:
        fine, reach = q.role != COARSE, layout.coarse + layout.pad  # a short first block counts as a whole one
        near = (k.frame >= start - reach - layout.window * fine) | fine & (not layout.window)
        seen = seen & (near | (k.role != COARSE))
    return seen


def first_noisy(layout, k: Ids) -> Array:
    """First frame of the first block that is noisy, [..., 1, 1]; far in the future where none is."""
    noisy = (k.role == NOISY) & (k.frame >= 0)
    first = (k.frame * noisy + NEVER * (noisy == 0)).min(axis=-1, keepdims=True, initial=NEVER)
    return layout.block_start(first)


def with_shared(q: Ids, k: Ids, seen: Array) -> Array:
    """``seen``, and beside it what is seen by all and sees only its own kind: context, and a reference frame."""
    seen = seen & (q.role != CONTEXT) | (k.role == CONTEXT)
    seen = seen & (q.role != REFERENCE) | (k.role == REFERENCE)
    seen = seen & ((q.role != CONTEXT) | (k.role == CONTEXT))
    return seen & ((q.role != REFERENCE) | (k.role != REFERENCE) | (q.frame == k.frame))


def _frame_causal(q, k, q_block, k_block):
    del q_block, k_block  # one stream: a committed block is a noisy one whose level has reached zero
    return k.frame <= q.frame


def _block_causal(q, k, q_block, k_block):
    del q, k
    return k_block <= q_block


def _full(q, k, q_block, k_block):
    del k, k_block
    return (q.frame == q.frame) & (q_block == q_block)


def _clean_past(q, k, q_block, k_block):
    return (q.role == CLEAN) & (k.role == CLEAN) & (k_block <= q_block)


def _teacher_forcing(q, k, q_block, k_block):
    past = (q.role == NOISY) & (k.role == CLEAN) & (k_block < q_block)
    itself = (q.role == NOISY) & (k.role == NOISY) & (k_block == q_block) & (k.copy == q.copy)
    return _clean_past(q, k, q_block, k_block) | past | itself


def _noisy_after_prefix(q, k, q_block, k_block):
    past = (k.role == CLEAN) & (k_block < q_block)
    return (q.role == NOISY) & (past | (k.role == NOISY) & (k_block == q_block))


def _partial_prefix(q, k, q_block, k_block):
    prefix = (q.role == CLEAN) & (k.role == CLEAN) & (k.frame <= q.frame)
    return prefix | _noisy_after_prefix(q, k, q_block, k_block)


def _prefix(q, k, q_block, k_block):
    return (q.role == CLEAN) & (k.role == CLEAN) | _noisy_after_prefix(q, k, q_block, k_block)


def _bidirectional_window(q, k, q_block, k_block):
    past = (k.role == CLEAN) & (k_block < q_block)
    return _clean_past(q, k, q_block, k_block) | (q.role == NOISY) & (past | (k.role == NOISY))


# name -> who sees whom before anything is narrowed, of ids and block indices that broadcast to [..., Tq, Tk].
CLAUSES = {
    "frame_causal": _frame_causal,
    "block_causal": _block_causal,
    "full": _full,
    "teacher_forcing": _teacher_forcing,
    "prefix": _prefix,
    "partial_prefix": _partial_prefix,
    "bidirectional_window": _bidirectional_window,
}
