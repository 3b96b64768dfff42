"""What layers declare about tensor parallelism, in the present words and in those of hook API 1.0."""

import pytest
from torch import nn

from reallm.deprecation import HookDeprecationWarning
from reallm.errors import PluginError
from reallm.model.layers import Linear
from reallm.model.sharding import as_split, has_partial_grad


@pytest.mark.parametrize("split", ["column", "row", "column_row"])
def test_the_words_for_splits(split):
    assert as_split(split, "MyMLP") == split


@pytest.mark.parametrize(("old", "new"), [("out", "column"), ("in", "row"), ("inside", "column_row")])
def test_the_words_of_hook_api_1_0_mean_the_same_and_are_deprecated(old, new):
    with pytest.warns(HookDeprecationWarning, match=f"split='{old}' of MyMLP is deprecated .* use split='{new}'"):
        assert as_split(old, "MyMLP") == new


def test_a_linear_layer_that_is_made_with_an_old_word_is_split_alike():
    with pytest.warns(HookDeprecationWarning, match="use split='row'"):
        old = Linear(4, 6, bias=True, split="in", unit=2)
    new = Linear(4, 6, bias=True, split="row", unit=2)
    assert (old.split, old.shards) == (new.split, new.shards)


def test_another_word_is_refused_by_the_class():
    with pytest.raises(PluginError, match="Linear declares split='rows', which is not one of 'column', 'row', 'col"):
        Linear(4, 6, split="rows")


def test_partial_gradients_are_declared_by_either_name():
    class Old(nn.Module):
        sees_part = True

    class New(nn.Module):
        partial_grad = True

    assert has_partial_grad(New())
    assert not has_partial_grad(nn.Identity())
    with pytest.warns(
        HookDeprecationWarning, match="the attribute 'sees_part' of .*Old is deprecated .* 'partial_grad'"
    ):
        assert has_partial_grad(Old())
