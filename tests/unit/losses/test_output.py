import pytest
import torch

from cirray.core.errors import ConfigError
from cirray.losses.output import weighted_sum


def test_the_total_is_the_weighted_sum_and_terms_stay_unweighted():
    a, b = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    output = weighted_sum({"a": a, "b": b, "seen": torch.tensor(9.0)}, {"a": 1.0, "b": 0.5})
    output.total.backward()
    assert float(output.total.detach()) == 3.5
    assert (float(a.grad), float(b.grad)) == (1.0, 0.5)
    assert {name: float(value) for name, value in output.terms.items()} == {"a": 2.0, "b": 3.0, "seen": 9.0}
    assert not output.terms["a"].requires_grad


def test_a_weight_without_a_term_is_refused():
    with pytest.raises(ConfigError, match="m2t"):
        weighted_sum({"q2t": torch.tensor(1.0)}, {"q2t": 1.0, "m2t": 0.4})
