"""The conformance kit: checks that plug-in authors run on their own encoder, fusion or task."""

from mmtransfer.testing.contract import ContractError
from mmtransfer.testing.encoder import check_encoder
from mmtransfer.testing.fusion import check_fusion, random_features
from mmtransfer.testing.stages import check_cuts, check_stages
from mmtransfer.testing.syncs import ForbidSyncs, SyncError
from mmtransfer.testing.task import check_task

__all__ = [
    "ContractError",
    "ForbidSyncs",
    "SyncError",
    "check_cuts",
    "check_encoder",
    "check_fusion",
    "check_stages",
    "check_task",
    "random_features",
]
