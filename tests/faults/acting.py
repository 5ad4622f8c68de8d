"""The faults. Each is a function of the trial: it does the harm, says `go`, and brings back what it took away."""

import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace

from redis import Redis
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from tests.conftest import wait_until
from tests.faults import work
from tests.faults.house import COMMANDS, LEASE, TRAINING
from tests.faults.memory import SmallGroup, refuse_more
from tests.faults.processes import send, send_group
from tests.faults.trial import Trial
from wbar.states import TERMINAL
from wbar_store.attempts import MAX_CRASHES, MAX_KILLED
from wbar_store.database import IDLE_SECONDS
from wbar_store.notifier import RUN_JOB

OUTAGE_SECONDS = 3.0  # of a broker, or of the blobs' disk
FULL_SECONDS = 6.0  # of the workers' disk: longer than three attempts that fail at once
TRAINER_POINTS = ("attempt", "phase-", "snapshot-file", "state-file")


def _at_trainer(trial: Trial) -> bool:
    return trial.plan.point.startswith(TRAINER_POINTS)


def kill_trainer(trial: Trial) -> None:
    pid = trial.pid if _at_trainer(trial) else trial.trainer()
    if pid is None:
        trial.notes.append("not reached")
        return
    send(pid, signal.SIGKILL)


def kill_worker(trial: Trial) -> None:
    name = trial.worker()
    trial.house.kill(name)
    trial.go()
    trial.house.start(name)


def kill_both_workers(trial: Trial) -> None:
    trial.house.kill(*TRAINING)
    trial.go()
    trial.house.start(*TRAINING)
    trial.ready_at = time.time()


def kill_all(trial: Trial) -> None:
    trial.house.kill(*COMMANDS)
    trial.house.broker.kill()
    trial.go()
    trial.house.broker.start()
    trial.house.start()
    trial.ready_at = time.time()


def kill_api(trial: Trial) -> None:
    trial.house.kill("api")
    trial.go()
    trial.house.start("api")


def kill_ingest(trial: Trial) -> None:
    trial.house.kill("ingest")
    trial.go()
    trial.house.start("ingest")


def kill_sweeper(trial: Trial) -> None:
    """Kill the sweeper; at its points of lost jobs it first gets something to do, a lost worker."""
    house, lost = trial.house, ""
    if trial.plan.point.startswith("sweep-"):
        wait_until(lambda: trial.status() != "queued", 30, "the claim")
        if trial.trainer() is None:
            trial.notes.append("not reached")
            return
        lost = trial.worker()
        house.arm(trial.plan)
        trial.fault_at = time.time()
        house.kill(lost)
        if not trial.wait_at_point(15):
            trial.notes.append("not reached")
    house.kill("sweep")
    trial.go()
    house.start("sweep", *filter(None, [lost]))
    trial.ready_at = time.time()


def drain(trial: Trial) -> None:
    """Stop the worker as an operator does: within the grace period it is gone, and the job goes on elsewhere."""
    house, name = trial.house, trial.worker()
    house.parts[name].terminate()
    trial.go()
    begun = time.monotonic()
    try:
        house.parts[name].wait(20)
    except subprocess.TimeoutExpired:
        trial.violations.append("the worker did not stop within 20 s of SIGTERM (its grace period is 10 s)")
        house.kill(name)
    trial.notes.append(f"stopped in {time.monotonic() - begun:.1f} s")
    house.start(name)


def freeze(trial: Trial) -> None:
    """Stop worker and training process until another worker has the job; then they go on, and their writes are refused."""
    group = trial.house.parts[trial.worker()].pid
    before = trial.attempts()
    send_group(group, signal.SIGSTOP)
    # PostgreSQL frees the rows of a frozen transaction after a while; an SQLite file stays locked.
    locked = IDLE_SECONDS if trial.plan.point == "in-transaction" and trial.house.server else 0.0
    deadline = time.monotonic() + 4 * LEASE + 5 + locked
    try:
        while trial.attempts() == before and trial.status() not in TERMINAL and time.monotonic() < deadline:
            time.sleep(0.05)
        if trial.attempts() == before and trial.status() not in TERMINAL:
            trial.notes.append("no takeover while frozen")
            if trial.house.server is not None:
                trial.violations.append("frozen for so long, the job was not taken over")
    finally:
        send_group(group, signal.SIGCONT)
    trial.go()


def freeze_trainer(trial: Trial) -> None:
    pid = trial.trainer()
    if pid is None:
        trial.notes.append("not reached")
        return
    send(pid, signal.SIGSTOP)
    time.sleep(2 * LEASE)
    send(pid, signal.SIGCONT)


def cancel(trial: Trial) -> None:
    """Cancel; the training process must end within a step, or 2 s."""
    begun = time.monotonic()
    answer = trial.house.ask("POST", f"/v1/jobs/{trial.job}/cancel")
    trial.go()
    if answer.status_code == 409:
        trial.notes.append("too late to cancel")
        return
    trial.expected = "cancelled"
    wait_until(lambda: not trial.house.trainers(), 30, "the end of the training process")
    trial.cancel_seconds = round(time.monotonic() - begun, 2)


def pause(trial: Trial) -> None:
    """Pause, look at the position that was stored, and resume."""
    house, path = trial.house, f"/v1/jobs/{trial.job}"
    answer = house.ask("POST", f"{path}/pause")
    trial.go()
    if answer.status_code == 409:
        trial.notes.append("not running: cannot be paused")
        return
    if work.wait_for(house, path, ("paused", *TERMINAL), 60)["status"] != "paused":
        trial.notes.append("too late to pause")
        return
    trial.notes.append("paused")
    [(stored,)] = house.sql("SELECT state_step FROM jobs WHERE id = :job", job=trial.job)
    step = house.ask("GET", path).json()["progress"]
    trial.notes.append(f"paused at {stored}")
    assert house.ask("POST", f"{path}/resume").status_code == 200
    ended = work.wait_for_end(house, trial.job)
    went_on = [
        event["data"]["message"]
        for event in work.events_of(house, trial.job)
        if event["type"] == "log" and "went on from step" in event["data"]["message"]
    ]
    if stored is not None and not any(f"from step {stored} " in message for message in went_on):
        trial.violations.append(f"paused at step {stored} of {step}, and it went on: {went_on} ({ended['status']})")


def broker_kill(trial: Trial) -> None:
    trial.house.broker.kill()
    trial.go()
    time.sleep(OUTAGE_SECONDS)
    trial.house.broker.start()
    trial.ready_at = time.time()


def broker_restart(trial: Trial) -> None:
    broker = trial.house.broker
    assert broker.process is not None
    broker.process.terminate()
    broker.process.wait(20)
    broker.socket.unlink(missing_ok=True)
    trial.go()
    broker.start()
    trial.ready_at = time.time()


def broker_flush(trial: Trial) -> None:
    with Redis(unix_socket_path=str(trial.house.broker.socket)) as redis:
        redis.flushall()


def database_cut(trial: Trial) -> None:
    with trial.house.store.database.write() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = 'wbar'"
            )
        )


def database_restart(trial: Trial) -> None:
    assert trial.house.server is not None
    trial.house.server.restart()
    for _ in range(50):
        try:
            trial.house.sql("SELECT 1")
            break
        except DBAPIError:
            time.sleep(0.1)
    trial.ready_at = time.time()


def disk_full_blobs(trial: Trial) -> None:
    trial.house.blobs_disk.fill()
    trial.go()
    time.sleep(OUTAGE_SECONDS)
    trial.house.blobs_disk.free()
    trial.ready_at = time.time()


def disk_full_scratch(trial: Trial) -> None:
    trial.house.scratch_disk.fill()
    trial.go()
    time.sleep(FULL_SECONDS)
    trial.house.scratch_disk.free()
    trial.ready_at = time.time()


def blobs_read_only(trial: Trial) -> None:
    if not trial.house.blobs_disk.read_only():
        trial.notes.append("not reached")
        return
    time.sleep(OUTAGE_SECONDS)
    trial.house.blobs_disk.writable()
    trial.ready_at = time.time()


def deliver_five(trial: Trial) -> None:
    for _ in range(5):
        assert trial.house.store.notifier.notify(RUN_JOB, trial.job)
    wait_until(lambda: trial.status() in TERMINAL, 120, "the end of the job")
    if trial.attempts() != 1:
        trial.violations.append(f"notified five times more, the job had {trial.attempts()} attempts")


def race(trial: Trial) -> None:
    """Hold one worker just before its claim until the other one has claimed the job."""
    assert trial.house.store.notifier.notify(RUN_JOB, trial.job)
    wait_until(lambda: trial.attempts() == 1, 30, "the other worker's claim")
    trial.go()
    wait_until(lambda: trial.status() in TERMINAL, 120, "the end of the job")
    if trial.attempts() != 1:
        trial.violations.append(f"two workers raced, and the job had {trial.attempts()} attempts")


def needs_memory(trial: Trial) -> None:
    trial.large = True
    trial.body = trial.inputs.body(large=True)


def _check_told(trial: Trial) -> None:
    wait_until(lambda: trial.status() in TERMINAL, 150, "the end of the job")
    told = [event["data"]["message"] for event in work.events_of(trial.house, trial.job) if event["type"] == "log"]
    if sum("in 2 parts (recipe.accumulate)" in message for message in told) != 1:
        trial.violations.append(f"no log event tells of smaller parts, or several: {told}")
    accumulate = trial.house.ask("GET", f"/v1/jobs/{trial.job}").json()["recipe"]["accumulate"]
    if accumulate != 2:
        trial.violations.append(f"recipe.accumulate is {accumulate}, not 2")


SPARE = 16 << 20  # bytes that a training process may take after it was squeezed


def _end_by_the_kernel(trial: Trial, times: int) -> None:
    """Have the kernel end so many training processes, as it does in a container that is too small.

    The workers are in the group, for they read its counter; the forkservers are not, since a group this small has the kernel
    choose by size, and they have the size of a small training process.
    """
    assert trial.pid is not None
    group, seen = SmallGroup(), set[int]()
    for name in TRAINING:
        group.take(trial.house.parts[name].pid)
    deadline = time.monotonic() + 60
    try:
        while len(seen) < times and trial.status() not in TERMINAL and time.monotonic() < deadline:
            for pid in set(trial.house.trainers()) - seen:
                seen.add(pid)
                group.squeeze(pid, SPARE)
                trial.go()
                wait_until(lambda pid=pid: pid not in trial.house.trainers(), 30, "the kernel's kill")  # type: ignore[misc]
                group.relax()
            time.sleep(0.005)
        _check_told(trial)
    finally:
        group.close()


def memory_killed(trial: Trial) -> None:
    """Have the kernel end the training process for want of memory, once: the job starts over in smaller parts."""
    _end_by_the_kernel(trial, 1)


def memory_killed_always(trial: Trial) -> None:
    """Have the kernel end both attempts: then it is out_of_memory."""
    trial.expected, trial.error = "failed", "out_of_memory"
    _end_by_the_kernel(trial, 2)


def memory_refused(trial: Trial) -> None:
    """Have the system refuse the training process more memory, so that an allocation fails."""
    assert trial.pid is not None
    refuse_more(trial.pid, 8 << 20)
    trial.go()
    _check_told(trial)


def with_movable_clocks(trial: Trial) -> None:
    """Start the parts whose clock will jump: all on SQLite, which has its host's clock; else the workers."""
    house = trial.house
    house.clock.write_text("+0")
    house.skewed = set(COMMANDS) if house.server is None else set(TRAINING)
    _start_again(trial)


def _start_again(trial: Trial) -> None:
    house = trial.house
    names = list(COMMANDS) if house.server is None else list(TRAINING)
    for name in names:
        house.parts[name].terminate()
    for name in names:
        house.parts[name].wait(45)
    house.start(*names)


def _jump(trial: Trial, offset: str) -> None:
    house = trial.house
    house.clock.write_text(offset)
    wait_until(lambda: trial.status() in TERMINAL, 120, "the end of the job after the jump")
    house.clock.write_text("+0")
    house.skewed = set()
    _start_again(trial)
    trial.fault_at = 0.0  # times in the log are by two clocks


def clock_forward(trial: Trial) -> None:
    _jump(trial, "+3600")


def clock_back(trial: Trial) -> None:
    _jump(trial, "-3600")


def poison(trial: Trial) -> None:
    """Have every attempt of another job die before its first saved state, while this one goes on undisturbed."""
    house = trial.house
    number, most = (signal.SIGSEGV, MAX_CRASHES) if trial.plan.fraction < 0.5 else (signal.SIGKILL, MAX_KILLED)
    job = house.ask("POST", "/v1/jobs", json=trial.body).json()["id"]
    plan = replace(trial.plan, point="state-file", when="before", nth=1)
    house.arm(plan, number, job)
    ended = work.wait_for_end(house, job)
    house.go(plan)
    if (ended["status"], (ended["error"] or {}).get("code")) != ("failed", "attempts_exhausted"):
        trial.violations.append(f"the poison job ended {ended['status']}: {ended['error']}")
    if not 1 < ended["attempts"] <= most + 2:
        trial.violations.append(f"the poison job had {ended['attempts']} attempts; {most} in a row are allowed")
    trial.notes.append(f"poison by {number.name}: {ended['attempts']} attempts")
    house.ask("DELETE", f"/v1/jobs/{job}")
    trial.fault_at = 0.0


PREPARED: dict[str, Callable[[Trial], None]] = {
    "memory-killed": needs_memory,
    "memory-killed-always": needs_memory,
    "memory-refused": needs_memory,
    "clock-forward": with_movable_clocks,
    "clock-back": with_movable_clocks,
}
FAULTS: dict[str, Callable[[Trial], None]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        kill_trainer, kill_worker, kill_both_workers, kill_all, kill_api, kill_ingest, kill_sweeper, drain, freeze,
        freeze_trainer, cancel, pause, broker_kill, broker_restart, broker_flush, database_cut, database_restart,
        disk_full_blobs, disk_full_scratch, blobs_read_only, deliver_five, race, memory_killed, memory_killed_always,
        memory_refused, clock_forward, clock_back, poison,
    )
}  # fmt: skip
