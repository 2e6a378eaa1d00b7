import torch

from deployments.drafts import constrained_if_any, expanded


def test_each_value_is_repeated_for_the_tokens_of_its_request() -> None:
    temperatures = torch.tensor([0.8, -1.0, 0.5])
    spread = expanded(temperatures, torch.tensor([2, 2, 5], dtype=torch.int32), 5, replace_from=-1, replace_to=1)
    torch.testing.assert_close(spread, torch.tensor([0.8, 0.8, 0.5, 0.5, 0.5]))


def test_what_stands_for_greedy_is_replaced() -> None:
    spread = expanded(torch.tensor([-1.0, 0.5]), torch.tensor([3, 4], dtype=torch.int32), 4, -1, 1)
    torch.testing.assert_close(spread, torch.tensor([1.0, 1.0, 1.0, 0.5]))


def test_whole_numbers_stay_whole() -> None:
    spread = expanded(torch.tensor([20, 7], dtype=torch.int32), torch.tensor([1, 3], dtype=torch.int32), 3)
    assert spread.tolist() == [20, 7, 7]
    assert spread.dtype == torch.int32


def test_where_nothing_was_drafted_nothing_is_sampled() -> None:
    assert constrained_if_any(torch.empty(0, 5), torch.tensor([0]), None).shape == (0, 5)
