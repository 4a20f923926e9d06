"""`open_session` and `prepare` as the package exports them: with `mesh.auto`, they choose the axes of the mesh first."""

from mft_jax import session as sessions
from mft_jax import setup as setups
from mft_jax.config import ExperimentConfig, MeshConfig, ModelSource
from mft_jax.plan.fit import choose_mesh
from mft_jax.session import Session
from mft_jax.setup import Setup


def open_session(source: ModelSource, mesh: MeshConfig) -> Session:
    """As `session.open_session`; with `mesh.auto`, on the mesh that `choose_mesh` takes for the default settings.

    A run with other numbers of agents or rows may need another one: then give that of `choose_mesh(config)`.
    """
    return sessions.open_session(source, choose_mesh(ExperimentConfig(model=source, mesh=mesh)).mesh)


def prepare(config: ExperimentConfig, session: Session | None = None) -> Setup:
    """As `setup.prepare`; with `mesh.auto` and no session, on the mesh that `choose_mesh` takes for the configuration."""
    return setups.prepare(choose_mesh(config) if session is None else config, session)
