"""The neuron as a registered operator: what torch.compile sees."""

import pytest
import torch

from statten.config import ModelConfig
from statten.models import build_model


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("learned", [False, True])
def test_the_operator_is_registered_as_pytorch_wants(backend, learned):
    torch.manual_seed(0)
    tau = torch.tensor(0.4, requires_grad=True) if learned else None
    for x in (torch.randn(4, 3, 8), torch.randn(1, 3, 8), torch.randn(4, 8, 3).transpose(1, 2)):
        arguments = (x.requires_grad_(), tau, 0.5, 1.0, 0.0, 4.0, True, 4, torch.float32, backend)
        torch.library.opcheck(torch.ops.statten.lif, arguments)
    soft = (torch.randn(4, 9).requires_grad_(), tau, 0.5, 1.0, None, 4.0, False, 4, torch.bfloat16, backend)
    torch.library.opcheck(
        torch.ops.statten.lif, soft, test_utils=("test_schema", "test_faketensor", "test_autograd_registration")
    )


@pytest.mark.parametrize("neuron", ["lif", "plif"])
def test_the_whole_model_compiles_into_one_graph(neuron):
    def make():
        torch.manual_seed(0)
        config = ModelConfig(timesteps=4, block_size=2, depth=1, embed_dim=32, num_heads=2, image_size=16, neuron=neuron)
        return build_model(config).double().train()

    eager, compiled, x = make(), make(), torch.randn(4, 3, 16, 16, dtype=torch.float64)
    expected = eager(x)
    found = torch.compile(compiled, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    expected.square().sum().backward()
    found.square().sum().backward()
    for ours, theirs in zip(compiled.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-9)
