"""Transferability scores: how well frozen features would tell the classes, without training.

All are larger the better; `mmtransfer.registry.scores` knows them by name.  A score takes
`features (N, D)` and `labels (N,)`, or where its first argument says so the `probabilities (N, Z)`
or the `source_labels (N,)` that the encoder's own classifier gives for the target's rows.
"""
