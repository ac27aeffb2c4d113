"""List the nodes that ComfyUI registers."""

from comfy_api.latest import ComfyExtension, io

from .nodes_apply import PUApplyLoRA, PUCompare
from .nodes_audit import PUAudit
from .nodes_compare import PUCompareRuns
from .nodes_dataset import PUDataset
from .nodes_evaluate import PUEvaluate
from .nodes_input import PUCheckpoint, PUCheckpointFromModel, PUOptions
from .nodes_make_data import PUMakeData
from .nodes_train import PUPlan, PUUnlearn


class PUUnlearnExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        nodes = [PUDataset, PUOptions, PUUnlearn, PUApplyLoRA, PUCompare, PUPlan]
        return [*nodes, PUMakeData, PUAudit, PUEvaluate, PUCompareRuns, PUCheckpoint, PUCheckpointFromModel]
