"""The table of rules: what each alert means and what to do, as docs/alerts.md, the API and every notification say it. Pure data.

A rule's number comes from the settings `[alerts]`; its severity, hold time and words are the product's. Rules that judge a whole bucket
hold for two or three of them, so that one odd bucket raises nothing; what cannot get better by waiting (a certificate, a full disk) has no
hold time.
"""

from __future__ import annotations

from typing import Final

from coordinator.learning.alerts import OVERFLOW, Rule, Severity
from shared.config_alerts import AlertsConfig
from shared.errors import ConfigError
from shared.units import BUCKET_S

MINUTE_S: Final = 60.0
HOUR_S: Final = 3600.0


def rules_of(config: AlertsConfig) -> dict[str, Rule]:
    """Rules in force, by name. Raises ConfigError for the name of a rule that there is not."""
    table = {rule.name: rule for rule in _table(config)}
    for name in config.disabled:
        if name not in table:
            raise ConfigError(f"alerts.disabled: {name!r} is no rule; allowed: {', '.join(sorted(table))}")
    return {name: rule for name, rule in table.items() if name not in config.disabled}


def _table(config: AlertsConfig) -> list[Rule]:
    info, warning, critical = Severity
    keep_s = float(config.keep_s)
    bucket_keep_s = max(keep_s, 2.0 * BUCKET_S)  # judged once a bucket: one that is missing resolves nothing

    def rule(name: str, severity: Severity, for_s: float, meaning: str, action: str, **more: object) -> Rule:
        return Rule(name=name, severity=severity, for_s=for_s, meaning=meaning, action=action, **{"keep_s": keep_s, **more})  # type: ignore[arg-type]

    slow = {"keep_s": bucket_keep_s}
    return [
        rule(
            "HostBusy",
            warning,
            10 * MINUTE_S,
            "a host uses nearly all of its CPU or memory now",
            "look at the host's VMs; move some away or wake another host, see /api/v1/placement",
            threshold=config.host_permille / 1000,
            unit="share of capacity",
            labels=("host", "resource"),
        ),
        rule(
            "VmAtItsLimit",
            warning,
            2 * BUCKET_S,
            "a VM used nearly all it has of a resource for three buckets: its demand is not known, only that it is more",
            "look at why it was not given more: its policy's ceiling, its host's room, refusals of its steps",
            threshold=config.vm_permille / 1000,
            unit="share of what is in force",
            labels=("vm", "name", "host", "client", "resource"),
            **slow,
        ),
        rule(
            "BudgetBurning",
            warning,
            0.0,
            "a client uses up its SLA error budget too fast, by a short and a long window alike",
            "see /api/v1/sizing for what its VMs lack; its VMs already weigh more wherever something is short",
            threshold=1.0,
            unit="burn rate over what its window allows",
            labels=("client",),
            **slow,
        ),
        rule(
            "BudgetSpent",
            critical,
            0.0,
            "a client has overdrawn its error budget of the whole period",
            "what was promised is broken: tell the client, and give its VMs room until the period has passed",
            threshold=1.0,
            unit="share of the budget",
            labels=("client",),
            **slow,
        ),
        rule(
            "ObjectiveInfeasible",
            warning,
            2 * BUCKET_S,
            "what a client was promised cannot be kept within the hour, whoever goes short instead",
            "raise the VM's ceiling, move it, or add hosts, as `cause` says",
            labels=("client", "cause", "resource"),
            **slow,
        ),
        rule(
            "CapacityShortfall",
            critical,
            BUCKET_S,
            "within the hour a pool's VMs will want more than all its awake hosts have, wherever they are placed",
            "wake the hosts that the summary names; where none is left, add hosts",
            threshold=0.0,
            unit="of the resource",
            labels=("pool", "resource"),
            **slow,
        ),
        rule(
            "HostShortfall",
            warning,
            BUCKET_S,
            "within the hour a host's VMs will want more than it has, while its pool has room",
            "move the VMs that the summary names; placement does so by itself where placement.execute is execute",
            threshold=0.0,
            unit="of the resource",
            labels=("pool", "host", "resource"),
            **slow,
        ),
        rule(
            "ForecastInaccurate",
            warning,
            HOUR_S,
            "the forecasts of a day are worse than just repeating the last value",
            "see /api/v1/accuracy for the worst series; sizing falls back to reactive for those that are out of calibration",
            threshold=config.accuracy_ratio,
            unit="pinball loss over the naive forecast's",
            labels=("resource",),
            **slow,
        ),
        rule(
            "ForecastCoverageLow",
            warning,
            HOUR_S,
            "too few actuals of a day lie within the 80 % band: the forecasts are surer than they may be",
            "see /api/v1/accuracy; a release of the client's or a new season is a usual cause, and passes with retraining",
            threshold=config.coverage_permille / 1000,
            unit="share of actuals",
            labels=("resource",),
            **slow,
        ),
        rule(
            "ForecastDrift",
            info,
            0.0,
            "the forecasts have worsened for long against what is usual; a retraining was asked for",
            "look for what changed in the load; if it comes again after the retraining, add an event calendar for it",
            labels=("reason",),
            keep_s=HOUR_S,
        ),
        rule(
            "VmsOutOfCalibration",
            warning,
            2 * BUCKET_S,
            "the forecasts of many VMs may not be used: they are under the reactive rule alone",
            "see /api/v1/vms for those whose `reason` is out_of_calibration, and what they have in common",
            threshold=config.uncalibrated_permille / 1000,
            unit="share of VMs",
            labels=("resource",),
            **slow,
        ),
        rule(
            "AgentStale",
            critical,
            float(config.silent_s),
            "a host's agent is silent: the host counts as full, its VMs keep what they have",
            "see `silent_reason` of /api/v1/hosts; on the host: systemctl status tidegate-agent, tidegate-agent doctor",
            labels=("host",),
        ),
        rule(
            "AgentLosesSamples",
            warning,
            0.0,
            "a host's spool was full: its oldest frames are gone",
            "the coordinator was away for too long, or takes too little: see tidegate_wal_bytes; spool_max_bytes bounds the spool",
            labels=("host",),
            keep_s=HOUR_S,
        ),
        rule(
            "VmQuarantined",
            warning,
            0.0,
            "a VM's monitor does not answer: nothing on it is changed",
            "on the host: virsh domstate and the QEMU log of the domain; a hung monitor often needs the guest to be stopped",
            labels=("vm", "host"),
            keep_s=HOUR_S / 2,
        ),
        rule(
            "ClockOffset",
            warning,
            2 * MINUTE_S,
            "a host's clock differs from the coordinator's: its samples fall into the wrong buckets",
            "run chrony or systemd-timesyncd on both",
            threshold=config.clock_offset_s,
            unit="s",
            labels=("host",),
        ),
        rule(
            "StepsRefused",
            warning,
            0.0,
            "hosts refused many of the last hour's steps",
            "look up the code in docs/refusals.md; /api/v1/outcomes has each one",
            threshold=config.refused_permille / 1000,
            unit="share of the last hour's steps",
            labels=("code",),
        ),
        rule(
            "VmFlapping",
            info,
            0.0,
            "a VM was grown and shrunk again too often within six hours: its client feels each one",
            "raise its floor, or sizing.shrink_evidence_buckets; see /api/v1/receipts?vm=",
            threshold=float(config.reversals),
            unit="reversals in 6 h",
            labels=("vm", "host"),
        ),
        rule(
            "CertificateExpiring",
            warning,
            0.0,
            "one of our TLS files expires soon: from then on no agent connects",
            "make a new one (`tidegate pki`, or your own authority) and restart",
            threshold=float(config.certificate_days),
            unit="days left",
            labels=("file",),
        ),
        rule(
            "CertificateUnusable",
            critical,
            0.0,
            "one of our TLS files expires within a day, has expired or cannot be read",
            "make a new one now (`tidegate pki`, or your own authority) and restart",
            threshold=1.0,
            unit="days left",
            labels=("file",),
        ),
        rule(
            "DiskFilling",
            critical,
            0.0,
            "the disk of state_dir is nearly full: without it no frame can be acknowledged",
            "free space, or lower history_max_bytes; agents keep what is not acknowledged meanwhile",
            threshold=config.disk_free_permille / 1000,
            unit="share free",
        ),
        rule(
            "FrameLogFilling",
            warning,
            2 * MINUTE_S,
            "the log of frames is more than 80 % full: when it is full, agents have to wait",
            "history is not written fast enough, or wal_max_bytes is too small for the fleet",
            threshold=0.8,
            unit="share of wal_max_bytes",
        ),
        rule(
            "RegistryFailing",
            critical,
            0.0,
            "alerts cannot be written to the registry: the database refuses",
            "see the log for its words: disk full, or PostgreSQL away; nothing told is lost, it is written when it answers again",
        ),
        rule(
            "DecisionsStuck",
            critical,
            0.0,
            "agents are connected, and no decision was made for too long",
            "see /readyz and the log; the last stage that ended is in /api/v1/fleet",
            threshold=float(config.stuck_s),
            unit="s since the last decision",
        ),
        rule(
            "AlertsUndelivered",
            warning,
            0.0,
            "a receiver of alerts has not taken them for a quarter of an hour; they wait",
            "see the log for its answer; what waits is sent in order when it answers again",
            threshold=15 * MINUTE_S,
            unit="s",
            labels=("receiver",),
        ),
        rule(
            OVERFLOW,
            warning,
            0.0,
            "more conditions hold than alerts.max_active: the severest are shown, this one says how many are not",
            "look for the common cause; raise alerts.max_active only if the receivers can bear it",
            threshold=float(config.max_active),
            unit="alerts",
        ),
    ]
