import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.render.live import three


def test_three_is_found_in_the_order_that_is_said(tmp_path, monkeypatch):
    def put(*parts):
        place = tmp_path.joinpath(*parts)
        place.mkdir(parents=True)
        for name in three.FILES:
            (place / name).write_text("//")
        return place

    monkeypatch.setattr(three, "_CHECKOUT", tmp_path / "checkout")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CAUSAL_DIFFUSION_THREE", raising=False)
    monkeypatch.setenv("PATH", "")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match=f"npm pack three@{three.VERSION}") as error:
        three.find_three()
    assert "\n" not in str(error.value)
    cached = put("cache", "causal_diffusion", f"three-{three.VERSION}")
    assert three.find_three() == cached
    checkout = put("checkout", "node_modules", "three", "build")
    assert three.find_three() == checkout
    here = put("here", "node_modules", "three", "build")
    assert three.find_three() == here
    monkeypatch.setenv("CAUSAL_DIFFUSION_THREE", str(put("said")))
    assert three.find_three() == tmp_path / "said"
    assert three.find_three(put("package", "build").parent) == tmp_path / "package" / "build"
    with pytest.raises(UserError, match="--three is .*nowhere.*three.module.js"):
        three.find_three(tmp_path / "nowhere")
    monkeypatch.setenv("CAUSAL_DIFFUSION_THREE", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="CAUSAL_DIFFUSION_THREE is"):
        three.find_three()


@pytest.mark.parametrize("script, said", [
    ("mkdir -p package/build && for f in build/three.module.js build/three.core.js LICENSE; do echo $f > package/$f; "
     'done && tar czf "$5/three-1.tgz" package', None),
    ("echo 'npm error no network' >&2; exit 1", "no network"),
    ('echo broken > "$5/three-1.tgz"', "could not be kept"),
])  # fmt: skip
def test_npm_fetches_it_once(tmp_path, monkeypatch, script, said):
    npm = tmp_path / "npm"
    npm.write_text(f"#!/bin/sh\necho \"$@\" >> {tmp_path}/calls\n{script}\n")
    npm.chmod(0o755)
    monkeypatch.setattr(three, "_CHECKOUT", tmp_path)
    monkeypatch.setattr(three.shutil, "which", lambda name: str(npm))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CAUSAL_DIFFUSION_THREE", raising=False)
    monkeypatch.chdir(tmp_path)
    if said is None:
        found = [three.find_three() for _ in range(2)]
        assert found == [three.cache_folder()] * 2
        assert sorted(p.name for p in found[0].iterdir()) == sorted([*three.FILES, "LICENSE"])
        assert len((tmp_path / "calls").read_text().splitlines()) == 1
        assert f"pack three@{three.VERSION} " in (tmp_path / "calls").read_text()
    else:
        with pytest.raises(UserError, match=said) as error:
            three.find_three()
        assert "\n" not in str(error.value)
    assert [p.name for p in (tmp_path / "cache" / "causal_diffusion").iterdir()] in ([], [f"three-{three.VERSION}"])
