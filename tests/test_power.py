"""GPU samples, with a stand-in for NVML: no GPU is needed to hold what is written and read."""

import json
import time
from types import SimpleNamespace

from dsa_profiler.capture import power


class FakeNvml:
    """A GPU that draws 70 W idle and 700 W busy, hits its power cap, and counts energy."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, energy=True, failing=()):
        self.looks, self.energy, self.failing = 0, energy, failing

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        self.looks += 1
        if self.looks in self.failing:
            raise RuntimeError("GPU is lost")
        return index

    def nvmlDeviceGetPowerUsage(self, handle):  # noqa: N802
        return 70_000 if self.looks == 1 else 700_000

    def nvmlDeviceGetClockInfo(self, handle, kind):  # noqa: N802
        return {1: 1980 - 10 * self.looks, 2: 3201}[kind]

    def nvmlDeviceGetTemperature(self, handle, kind):  # noqa: N802
        return 40 + self.looks

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):  # noqa: N802
        return 0x01 if self.looks == 1 else 0x04

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):  # noqa: N802
        if not self.energy:
            raise RuntimeError("not supported")
        return 1_000_000 + 70_000 * self.looks

    def nvmlDeviceGetComputeRunningProcesses(self, handle):  # noqa: N802
        return [SimpleNamespace(pid=999_999_999)]


def test_samples_are_written_read_and_summed_up(tmp_path):
    with power.sampling(tmp_path, FakeNvml(), 0):
        time.sleep(0.5)
    found = power.read(tmp_path)
    told = power.summary(found)
    assert len(found) >= 3
    assert (told.idle_w, told.median_w) == (70, 700)
    assert told.energy_j == 70 * (len(found) - 1)
    assert told.throttled == ("power cap",)
    assert told.sm_mhz == (1980 - 10 * len(found), 1960)
    assert told.others == 1


def test_a_look_that_fails_is_left_out_and_harms_nothing(tmp_path):
    with power.sampling(tmp_path, FakeNvml(energy=False, failing=(2,)), 0):
        time.sleep(0.4)
    told = power.summary(power.read(tmp_path))
    assert told.energy_j is None
    assert told.median_w == 700


def test_without_nvml_there_is_no_file(tmp_path):
    with power.sampling(tmp_path, None, 0):
        pass
    assert list(tmp_path.iterdir()) == []
    assert power.summary(power.read(tmp_path)) is None


def test_a_half_written_line_is_not_read(tmp_path):
    with power.sampling(tmp_path, FakeNvml(), 0):
        pass
    whole = power.read(tmp_path)
    with (tmp_path / power.FILE).open("a") as file:
        file.write(json.dumps({"at_s": 1})[:5])
    assert power.read(tmp_path) == whole
