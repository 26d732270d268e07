"""The published evaluator of text to motion: its weights from a file of torch's, and number by number against torch."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.interop import guo_evaluator

pytestmark = pytest.mark.oracle

SIZES = {
    "published form": dict(channels=9, conv=6, movement=8, motion=10, text=6, latent=7, words=12, tags=5),
    "MARDM's": dict(channels=4, conv=8, movement=5, motion=6, text=4, latent=9, words=6, tags=3),
}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def networks(torch, s):
    """Three torch networks with the names that the released file has, and how they are called."""
    nn = torch.nn

    def head(hidden, out):
        return nn.Sequential(nn.Linear(2 * hidden, hidden), nn.LayerNorm(hidden), nn.LeakyReLU(0.2),
                             nn.Linear(hidden, out))  # fmt: skip

    class Movement(nn.Module):
        def __init__(self):
            super().__init__()
            first = nn.Conv1d(s["channels"], s["conv"], 4, stride=2, padding=1)
            second = nn.Conv1d(s["conv"], s["movement"], 4, stride=2, padding=1)
            act = nn.LeakyReLU(0.2)
            self.main = nn.Sequential(first, nn.Dropout(0.2), act, second, nn.Dropout(0.2), act)
            self.out_net = nn.Linear(s["movement"], s["movement"])

        def forward(self, x):
            return self.out_net(self.main(x.transpose(1, 2)).transpose(1, 2))

    class Recurrent(nn.Module):
        def __init__(self, inputs, hidden, tags=0):
            super().__init__()
            if tags:
                self.pos_emb = nn.Linear(tags, inputs)
            self.input_emb = nn.Linear(inputs, hidden)
            self.gru = nn.GRU(hidden, hidden, batch_first=True, bidirectional=True)
            self.output_net = head(hidden, s["latent"])
            self.hidden = nn.Parameter(torch.randn(2, 1, hidden))

        def forward(self, x, lengths, tags=None):
            if tags is not None:
                x = x + self.pos_emb(tags)
            packed = nn.utils.rnn.pack_padded_sequence(
                self.input_emb(x), lengths, batch_first=True, enforce_sorted=False
            )
            _, last = self.gru(packed, self.hidden.repeat(1, len(x), 1))
            return self.output_net(torch.cat([last[0], last[1]], dim=-1))

    torch.manual_seed(0)
    made = {
        "movement_encoder": Movement(),
        "motion_encoder": Recurrent(s["movement"], s["motion"]),
        "text_encoder": Recurrent(s["words"], s["text"], s["tags"]),
    }
    return {name: network.eval() for name, network in made.items()}


def saved(torch, made, path, **more):
    torch.save({name: network.state_dict() for name, network in made.items()} | more, path)
    return path


@pytest.fixture(scope="module", params=list(SIZES))
def both(request, torch, tmp_path_factory):
    made = networks(torch, SIZES[request.param])
    optimizer = torch.optim.Adam(made["text_encoder"].parameters())
    path = tmp_path_factory.mktemp("guo") / "finest.tar"
    saved(torch, made, path, opt_text_encoder=optimizer.state_dict(), epoch=3, iter=77)
    return made, SIZES[request.param], *guo_evaluator.load(path)


def test_it_equals_torch_for_unequal_lengths(torch, both):
    made, sizes, evaluator, params = both
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 196, sizes["channels"])).astype(np.float32)
    length = np.array([40, 196, 41, 8, 131])
    for i, frames in enumerate(length):
        x[i, frames:] = 0.0  # the published protocol fills clips up with zeros
    with torch.no_grad():
        expected = made["motion_encoder"](made["movement_encoder"](torch.from_numpy(x)), torch.from_numpy(length // 4))
    given = jnp.asarray(x), jnp.asarray(length)
    got = evaluator.apply({"params": params}, *given, method="motion")
    np.testing.assert_allclose(got, expected, atol=1e-4)
    # Neither a shorter filling nor what stands in it changes that.
    some = np.array([0, 2, 4])
    x[0, 40:] = 5.0
    got = evaluator.apply({"params": params}, x[some, :131], length[some], method="motion")
    np.testing.assert_allclose(got, expected[some], atol=1e-4)


def test_captions_equal_torch_for_unequal_lengths(torch, both):
    made, sizes, evaluator, params = both
    rng = np.random.default_rng(1)
    words = rng.standard_normal((4, 22, sizes["words"])).astype(np.float32)
    tags = np.eye(sizes["tags"], dtype=np.float32)[rng.integers(0, sizes["tags"], (4, 22))]
    length = np.array([5, 22, 1, 14])
    with torch.no_grad():
        expected = made["text_encoder"](torch.from_numpy(words), torch.from_numpy(length), torch.from_numpy(tags))
    got = evaluator.apply({"params": params}, words, tags, jnp.asarray(length), method="text")
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_every_weight_is_used(torch, both):
    """As many numbers as torch has."""
    made, _, _, params = both
    theirs = sum(p.numel() for network in made.values() for p in network.parameters())
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == theirs


def test_what_it_is_not_is_named(torch, tmp_path):
    made = networks(torch, SIZES["MARDM's"])
    with pytest.raises(UserError, match="is no file; the evaluator's finest.tar would do"):
        guo_evaluator.load(tmp_path / "absent.tar")
    without = {name: made[name] for name in ("movement_encoder", "motion_encoder")}
    with pytest.raises(UserError, match="has no text_encoder of tensors"):
        guo_evaluator.load(saved(torch, without, tmp_path / "a.tar"))
    swapped = made | {"text_encoder": made["motion_encoder"]}
    with pytest.raises(UserError, match="text_encoder.pos_emb.weight is missing"):
        guo_evaluator.load(saved(torch, swapped, tmp_path / "b.tar"))
    made["motion_encoder"].gru = torch.nn.GRU(6, 6, num_layers=2, bidirectional=True)
    with pytest.raises(UserError, match="has motion_encoder.gru.bias_hh_l1, for which there is no place"):
        guo_evaluator.load(saved(torch, made, tmp_path / "c.tar"))
    made["motion_encoder"].gru = torch.nn.GRU(6, 5, bidirectional=True)
    with pytest.raises(UserError, match=r"motion_encoder.gru.\S+ is for"):
        guo_evaluator.load(saved(torch, made, tmp_path / "d.tar"))
    (tmp_path / "e.tar").write_bytes(pickle.dumps(print))
    with pytest.raises(UserError, match="(refused|cannot read)"):
        guo_evaluator.load(tmp_path / "e.tar")
