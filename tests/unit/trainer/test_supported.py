"""What this version of the trainer refuses before it takes a GPU."""

import pytest

from finetune_api.failures import Reason
from finetune_api.trainer import JobFailure
from finetune_trainer.methods.supported import check_supported
from unit.trainer.builders import make_config


@pytest.mark.parametrize("mode", ["server", "colocate"])
def test_vllm_is_refused_in_preparation(mode: str) -> None:
    config = make_config(
        method="grpo",
        rewards=[{"name": "length", "builtin": "length"}],
        rollout={"mode": mode},
    )
    with pytest.raises(JobFailure) as caught:
        check_supported(config.spec, None)
    assert caught.value.reason is Reason.CONFIG_INVALID
    assert caught.value.message.startswith(f"rollout.mode is {mode}, which this trainer version")
