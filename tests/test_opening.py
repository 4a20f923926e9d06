import dataclasses

import jax
import pytest

import mft_jax
from mft_jax import ExperimentConfig, MeshConfig, ModelSource, SamplingConfig, TaskConfig, UserError
from mft_jax.parallel.mesh import make_mesh

FEW = TaskConfig(train_questions=4, eval_questions=4)
AUTO = ExperimentConfig(task=FEW, sampling=SamplingConfig(rows=4, prefill_rows=4), mesh=MeshConfig(auto=True))


def test_a_session_with_mesh_auto_takes_all_devices():
    session = mft_jax.open_session(ModelSource(), MeshConfig(auto=True))
    assert session.mesh.size == len(jax.devices()) > 1


def test_a_setup_with_mesh_auto_has_the_mesh_that_a_run_chooses():
    chosen = mft_jax.choose_mesh(AUTO).mesh
    assert not chosen.auto
    assert mft_jax.prepare(AUTO).session.mesh.shape == {
        name: getattr(chosen, name) for name in ("agent", "data", "model")
    }


def test_a_session_whose_mesh_does_not_divide_the_rows(answering):
    three = dataclasses.replace(answering, mesh=make_mesh(MeshConfig(data=3)))
    asked = dataclasses.replace(AUTO, model=answering.source)
    with pytest.raises(
        UserError, match=r"mesh of the session: sampling\.rows is 4, expected a multiple of mesh\.data = 3"
    ):
        mft_jax.prepare(asked, three)
