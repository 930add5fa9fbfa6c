"""How close written texts are to those that were wanted."""

from __future__ import annotations


def likeness(texts: list[str], wanted: list[str]) -> dict[str, float]:
    """Return ``chrf`` and ``bleu``, 0 to 100, over all texts together, without regard to capitals.

    By sacrebleu (Popović 2015; Papineni et al. 2002; Post 2018). Not every tokenizer knows
    capitals, and what one model is scored for another must not be.

    Args:
        texts: that a model wrote.
        wanted: one for each of them.
    """
    import sacrebleu

    lower, references = [text.lower() for text in texts], [[text.lower() for text in wanted]]
    return {
        "chrf": float(sacrebleu.corpus_chrf(lower, references).score),
        "bleu": float(sacrebleu.corpus_bleu(lower, references).score),
    }
