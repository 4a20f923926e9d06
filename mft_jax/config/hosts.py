"""How a process joins the others that work on the same run. These are options of the command, not settings of the run."""

import dataclasses

from mft_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostsConfig:
    """The processes of a run on several hosts. By default the process works alone."""

    distributed: bool = False
    """This is one of several processes, one on each host, and the environment says which: that of a Cloud TPU slice, of
    Slurm, of Open MPI, or JAX_COORDINATOR_ADDRESS."""
    coordinator: str | None = None
    """HOST:PORT of the first process, reachable from all hosts. Needed only where the environment does not say it."""
    processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Number of this process, from 0. Process 0 listens at the coordinator's port, and writes the run directory."""
    connect_seconds: int = 300
    """A process ends if not all processes have joined after this time."""
    lost_seconds: int = 60
    """All processes end if one of them has given no sign of life for this time."""
    hang_seconds: int = 1800
    """All processes end if they have made no progress for this time, and show where they hang. It must be longer than
    the compilation of a program."""

    @property
    def several(self) -> bool:
        """Whether the process has to join others."""
        return self.distributed or self.coordinator is not None or self.processes not in (None, 1)

    def check(self) -> None:
        """Raises UserError for options that do not go together."""
        explicit = {"coordinator": self.coordinator, "processes": self.processes, "process-id": self.process_id}
        missing = [f"--{name}" for name, value in explicit.items() if value is None]
        if missing and len(missing) < 3 and not self.distributed:
            verb = "is" if len(missing) == 1 else "are"
            raise UserError(
                f"{', '.join(missing)} {verb} missing: give --coordinator, --processes and --process-id together, or "
                "--distributed where the environment says what they are."
            )
        if self.coordinator is not None and not self.coordinator.rpartition(":")[2].isdecimal():
            raise UserError(f"--coordinator is {self.coordinator!r}, expected HOST:PORT, such as 10.0.0.2:8476.")
        if self.processes is not None and self.processes < 1:
            raise UserError(f"--processes is {self.processes}, expected at least 1.")
        if self.process_id is not None and not 0 <= self.process_id < (self.processes or self.process_id + 1):
            raise UserError(f"--process-id is {self.process_id}, expected 0 to {(self.processes or 1) - 1}.")
        for name in ("connect_seconds", "lost_seconds", "hang_seconds"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}, expected at least 1.")
