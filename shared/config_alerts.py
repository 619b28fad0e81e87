"""Settings of alerts: what they are raised for, and who is told. Part of shared/config.py, which hands them on."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

Url = Annotated[str, Meta(pattern=r"^https?://[^/\s@]+(/\S*)?$", max_length=512)]
MAX_RECEIVERS: Final = 8


class AlertsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When an alert is raised (docs/alerts.md has every rule), and who is told of it."""

    evaluate_s: Annotated[int, Meta(ge=5, le=300, description="time from one look at the rules to the next")] = 15
    max_active: Annotated[
        int, Meta(ge=10, le=10_000, description="alerts that are pending or firing at a time; one more says how many others there are")
    ] = 500
    keep_s: Annotated[int, Meta(ge=0, le=86_400, description="an alert is resolved only when its condition has not held for this long")] = (
        300
    )
    disabled: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[A-Z][A-Za-z]+$", max_length=64)], ...],
        Meta(max_length=64, description="names of rules that are not looked at"),
    ] = ()
    host_permille: Annotated[int, Meta(ge=1, le=1000, description="a host that uses more of its CPU or memory is too full")] = 950
    vm_permille: Annotated[int, Meta(ge=1, le=1000, description="a VM that uses more of what it has of a resource is at its limit")] = 950
    accuracy_ratio: Annotated[
        float, Meta(ge=0.1, le=10, description="forecasts whose loss is more than this times the naive forecast's are bad")
    ] = 1.0
    coverage_permille: Annotated[
        int, Meta(ge=1, le=1000, description="an 80 % band that holds fewer of the actuals is out of calibration")
    ] = 700
    uncalibrated_permille: Annotated[
        int, Meta(ge=1, le=1000, description="share of VMs whose forecast may not be used that is too large")
    ] = 50
    clock_offset_s: Annotated[float, Meta(ge=0.1, le=3600, description="a host's clock further off than this is wrong")] = 2.0
    refused_permille: Annotated[int, Meta(ge=1, le=1000, description="share of an hour's steps refused by hosts that is too large")] = 500
    reversals: Annotated[int, Meta(ge=1, le=1000, description="turns from growing to shrinking of a VM in six hours that are too many")] = 3
    certificate_days: Annotated[int, Meta(ge=1, le=365, description="our certificates are to be renewed so long before they expire")] = 21
    disk_free_permille: Annotated[int, Meta(ge=1, le=900, description="less of state_dir's disk free is too little")] = 100
    silent_s: Annotated[int, Meta(ge=0, le=86_400, description="a host may be silent for this long, beyond cycle.stale_host_s")] = 120
    stuck_s: Annotated[int, Meta(ge=330, le=86_400, description="a coordinator without a new decision for this long is stuck")] = 900
    alertmanagers: Annotated[
        tuple[Url, ...],
        Meta(max_length=MAX_RECEIVERS, description="Alertmanagers told of every alert, each by itself, e.g. http://host:9093"),
    ] = ()
    webhooks: Annotated[
        tuple[Url, ...], Meta(max_length=MAX_RECEIVERS, description="addresses that get a signed POST for every change")
    ] = ()
    resend_s: Annotated[int, Meta(ge=5, le=3600, description="Alertmanagers are told again of what fires, this often")] = 60
    remind_s: Annotated[
        int, Meta(ge=0, le=604_800, description="webhooks are told again of what fires and nobody acknowledged; 0 = never")
    ] = 14_400
    user: Annotated[str, Meta(max_length=128, description="user of HTTP basic authentication at Alertmanagers; needs password_file")] = ""
    password_file: Annotated[str, Meta(max_length=4096, description="file with that password, read for each message")] = ""
    bearer_file: Annotated[str, Meta(max_length=4096, description="file with a bearer token for Alertmanagers instead")] = ""
    secret_file: Annotated[str, Meta(max_length=4096, description="file with the secret that signs webhooks; empty = not signed")] = ""
    ca_file: Annotated[str, Meta(max_length=4096, description="authorities (PEM) of receivers' certificates; empty = the system's")] = ""
    external_url: Annotated[
        str, Meta(pattern=r"^$|^https?://[^/\s@]+(/\S*)?$", max_length=512, description="our address for links; empty = listen_http")
    ] = ""

    def __post_init__(self) -> None:
        if bool(self.user) != bool(self.password_file):
            raise ValueError("alerts: user and password_file belong together: set both or none")
        if self.user and self.bearer_file:
            raise ValueError("alerts: user and bearer_file are two ways to authenticate: set one of them")
        for name, urls in (("alertmanagers", self.alertmanagers), ("webhooks", self.webhooks)):
            if len(set(urls)) != len(urls):
                raise ValueError(f"alerts.{name}: an address is named twice")
