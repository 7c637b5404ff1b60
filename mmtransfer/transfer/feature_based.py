"""Feature-based transfer: frozen features, a mapping of source and target, a head on top."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtransfer.data.rows import Rows, column, columns_of, fingerprint_column
from mmtransfer.encoders.base import Encoder, build_encoders
from mmtransfer.registry import check_options, import_class, nearest
from mmtransfer.tasks.classification import plain, unlabelled

if TYPE_CHECKING:
    from mmtransfer.training.options import TrainingOptions

MAPPINGS = ("none", "pca", "svd", "whitening")
FITTED_ON = ("target", "source", "both")
HEADS = {
    "linear": "sklearn.linear_model:RidgeClassifier",
    "logistic": "sklearn.linear_model:LogisticRegression",
    "knn": "sklearn.neighbors:KNeighborsClassifier",
    "svm": "sklearn.svm:SVC",
    "tradaboost": "mmtransfer.transfer.tradaboost:TrAdaBoost",
}
LAST = "last"
NEIGHBOURS = 5


class FeatureBased:
    """Classifies by what frozen encoders say, with classical methods (Pan & Yang, TKDE 2010).

    Features of each row are pooled and put side by side, standardised, mapped, and given to a
    head. Mapping and standardisation are fitted on rows with or without labels, the head on all
    rows of target and source that have one. An absent modality stands at the mean of the rows that
    have it, on which the mapping is fitted, so that it says nothing.  All of it is deterministic,
    and the features come from the feature store.

    encoders: specifications or encoders by column, for rows; arrays are features already
    target: the column of the labels, for rows
    layers: by column, which depths: cuts of the encoder, for what enters `stages[depth]`, or
        "last", for its features; ["last"] where nothing is said
    mapping: "none"; "pca"; "svd", of features that are not centred; "whitening", pca with equal
        variances
    components: how many the mapping keeps, or for pca and whitening which share of the variance;
        by default all that there are; whitening then leaves out those with less than D float32
        epsilons of the largest variance, which copies and dead features have by rounding alone
    fitted_on: mapping and standardisation are fitted on "target", "source" or "both"
    head: "linear" (ridge), "logistic", "knn", "svm" or "tradaboost" (by default of logistic
        regressions), which needs labels on both sides
    head_options: of the class of scikit-learn
    options: of the feature store and of reading

    Raises `ValueError` for unknown names and options, with the nearest valid one.
    """

    def __init__(
        self,
        encoders: Mapping[str, str | Encoder] | None = None,
        target: str | None = None,
        layers: Mapping[str, Sequence[int | str]] | None = None,
        mapping: str = "none",
        components: int | float | None = None,
        fitted_on: str = "target",
        head: str = "logistic",
        head_options: Mapping[str, Any] | None = None,
        options: TrainingOptions | None = None,
        seed: int = 0,
    ) -> None:
        for what, chosen, valid in (
            ("mapping", mapping, MAPPINGS),
            ("fitted_on", fitted_on, FITTED_ON),
            ("head", head, tuple(HEADS)),
        ):
            if chosen not in valid:
                raise ValueError(f"unknown {what} {chosen!r}.{nearest(chosen, valid)}")
        if mapping == "svd" and isinstance(components, float):
            raise ValueError(f"components of svd are a number of them, found {components}")
        check_options(import_class(HEADS[head]), head_options or {}, f"head {head!r}")
        self.encoders = build_encoders(encoders or {})
        self.layers = {name: [LAST] for name in self.encoders} | dict(layers or {})
        for name, depths in self.layers.items():
            if name not in self.encoders:
                raise ValueError(f"unknown modality {name!r}.{nearest(name, self.encoders)}")
            valid_depths = [*map(str, self.encoders[name].cuts), LAST]
            for depth in depths:
                if str(depth) not in valid_depths:
                    found = nearest(str(depth), valid_depths)
                    raise ValueError(f"encoder {name!r} has no layer {depth!r}.{found}")
        self.target, self.mapping, self.components = target, mapping, components
        self.fitted_on, self.head, self.head_options = fitted_on, head, dict(head_options or {})
        self.options, self.seed = options, seed
        self._widths: dict[tuple[str, int | str], int] = {}  # of each layer, once it is known
        self._mapping: Any = None
        self._head: Any = None

    def fit(
        self, rows: Any, labels: Any = None, source: Any = None, source_labels: Any = None
    ) -> FeatureBased:
        """Learn from rows of the target, and of the source if there are any.

        rows, source: rows, or arrays (N, D) in which an absent number is NaN
        labels, source_labels: (N,), None or NaN where there is none; by default the column of rows
        Raises `ValueError` where the choices need a source, or labels, that there are not.
        """
        for name, encoder in self.encoders.items():
            if type(encoder).fit is not Encoder.fit and not isinstance(rows, np.ndarray):
                encoder.fit(column(rows, name))
        target_side = self._side(rows, labels, "target")
        sides = {"target": target_side}
        if source is not None:
            sides["source"] = self._side(source, source_labels, "source")
        elif self.fitted_on != "target" or self.head == "tradaboost":
            what = "the head tradaboost" if self.head == "tradaboost" else "the mapping"
            raise ValueError(f"{what} needs rows of the source, found none")
        used = sides if self.fitted_on == "both" else [self.fitted_on]
        self._mapping = self._fit_mapping(np.concatenate([sides[side][0] for side in used]))
        known = {side: self._labelled(*found) for side, found in sides.items()}
        x, y = (np.concatenate([k[i] for k in known.values()]) for i in (0, 1))
        if not len(y):
            raise ValueError("no row of target or source has a label")
        if self.head == "tradaboost":
            self._head = self._new_head(len(y)).fit(*known["target"], *known["source"])
        else:
            self._head = self._new_head(len(y)).fit(x, y)
        return self

    def predict(self, rows: Any) -> np.ndarray:
        """Rows, or an array (N, D) -> labels (N,)."""
        mapped = self.map(rows)
        answers: np.ndarray = self._head.predict(mapped)
        return answers

    def score(self, rows: Any, labels: Any = None) -> float:
        """The share of the labelled rows whose label is right."""
        values, y = self._side(rows, labels, "score")
        x, known = self._labelled(values, y)
        if not len(known):
            raise ValueError("no row has a label to score by")
        return float((self._head.predict(x) == known).mean())

    def map(self, rows: Any) -> np.ndarray:
        """Rows, or an array (N, D) -> what the head gets, (N, components)."""
        return self._map(self.features(rows))

    def _map(self, values: np.ndarray) -> np.ndarray:
        if self._mapping is None:
            raise ValueError("nothing has been learned yet: call fit first")
        mapped: np.ndarray = self._mapping.transform(values)
        return mapped

    def features(self, rows: Any, split: str = "rows") -> np.ndarray:
        """Pooled features (N, D) of all layers, NaN where a modality is absent; arrays as is.

        Raises `ValueError` where the rows have none of the columns.
        """
        if isinstance(rows, np.ndarray):
            return rows
        there = columns_of(rows)
        if not any(name in there for name in self.encoders):
            first = next(iter(self.encoders), "")
            raise ValueError(
                f"the rows have none of the columns {list(self.encoders)}.{nearest(first, there)}"
            )
        return np.concatenate(list(self._blocks(rows, there, split)), 1)

    def _blocks(self, rows: Rows, there: Sequence[str], split: str) -> Iterator[np.ndarray]:
        # Training stands above; what it offers here is the store alone.
        from mmtransfer.training.features import Extraction, stored_features
        from mmtransfer.training.options import TrainingOptions
        from mmtransfer.training.setup import make_accelerator

        options = self.options or TrainingOptions(progress=False)
        accelerator = make_accelerator(options, None)
        for name, depths in self.layers.items():
            encoder = self.encoders[name]
            known = rows if name in there else [{name: None}] * len(rows)
            data = fingerprint_column(known, name)
            for depth in depths:
                number = 0 if depth == LAST else int(depth)
                wanted = Extraction(name, encoder, known, split, data, number, pooled=True)
                store, _ = stored_features(wanted, options, accelerator)
                present = [i for i, found in enumerate(store) if found is not None]
                if present:
                    self._widths[name, depth] = store.width
                elif (name, depth) not in self._widths:
                    raise ValueError(f"no row of the {split} has a value of {name!r}")
                width = self._widths[name, depth]
                block = np.full((len(rows), width), np.nan, dtype=np.float32)
                for i in present:
                    block[i] = store[i]
                yield block

    def _side(self, rows: Any, labels: Any, side: str) -> tuple[np.ndarray, list[Any]]:
        """Features, and labels or None, of rows."""
        values = self.features(rows, side)
        if labels is None and not isinstance(rows, np.ndarray):
            there = columns_of(rows)
            if self.target is not None and self.target in there:
                labels = column(rows, self.target)
            elif side != "source":
                name = str(self.target)
                raise ValueError(f"the rows have no column {name!r}.{nearest(name, there)}")
        found = [None] * len(values) if labels is None else [plain(label) for label in labels]
        if len(found) != len(values):
            raise ValueError(f"{len(values)} rows of the {side} have {len(found)} labels")
        return values, [None if unlabelled(label) else label for label in found]

    def _labelled(self, values: np.ndarray, labels: list[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Mapped features and labels of the rows that have one."""
        rows = [i for i, label in enumerate(labels) if label is not None]
        return self._map(values)[rows], np.array([labels[i] for i in rows])

    def _fit_mapping(self, values: np.ndarray) -> Any:
        from sklearn.decomposition import PCA, TruncatedSVD
        from sklearn.impute import SimpleImputer
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        most = min(values.shape)
        count = max(1, most - 1) if self.components is None else self.components
        if self.mapping != "none" and count > most:
            raise ValueError(
                f"{self.mapping} of {len(values)} rows of {values.shape[1]} features has at most "
                f"{most} components, found {count}"
            )
        steps: list[Any] = [
            SimpleImputer(keep_empty_features=True),
            StandardScaler(with_mean=self.mapping != "svd"),
        ]
        if self.mapping == "svd":
            steps.append(TruncatedSVD(int(count), random_state=self.seed))
        elif self.mapping != "none":
            whiten = self.mapping == "whitening"
            steps.append(PCA(count, whiten=whiten, random_state=self.seed))
        fitted = make_pipeline(*steps).fit(np.asarray(values, dtype=np.float64))
        if self.mapping == "whitening" and self.components is None:
            drop_rounding(fitted[-1])
        return fitted

    def _new_head(self, rows: int) -> Any:
        defaults: dict[str, dict[str, Any]] = {
            "logistic": {"max_iter": 2000},
            "knn": {"n_neighbors": min(NEIGHBOURS, rows)},
        }
        if self.head == "tradaboost":
            regression = import_class(HEADS["logistic"])
            defaults["tradaboost"] = {
                "estimator": partial(regression, max_iter=2000),
                "seed": self.seed,
            }
        return import_class(HEADS[self.head])(**defaults.get(self.head, {}) | self.head_options)


def drop_rounding(pca: Any) -> None:
    """Leave the components of a fitted PCA whose variance is more than rounding of float32.

    As `numpy.linalg.matrix_rank` counts the rank of the covariance of features in the store.
    """
    variances = pca.explained_variance_
    limit = np.finfo(np.float32).eps * pca.n_features_in_ * variances.max()
    kept = ~(variances < limit)
    pca.components_, pca.explained_variance_ = pca.components_[kept], variances[kept]
