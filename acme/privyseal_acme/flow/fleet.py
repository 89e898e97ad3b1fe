"""The fleet of one service: what is heard of workloads, and what becomes of that."""

from dataclasses import dataclass

from privyseal_acme.flow.context import Context
from privyseal_acme.flow.fleet_figures import FleetGauges
from privyseal_acme.flow.fleet_follow import FleetFollower
from privyseal_acme.flow.fleet_owners import Owners
from privyseal_acme.flow.fleet_states import FleetJudge
from privyseal_acme.flow.renewal import RenewalFlow


@dataclass(frozen=True, slots=True)
class Fleet:
    """The parts, which share rules and notes."""

    follower: FleetFollower
    judge: FleetJudge
    gauges: FleetGauges

    @classmethod
    def of(cls, context: Context, renewal: RenewalFlow) -> "Fleet":
        """The fleet as ``context`` has it; ``renewal`` knows the windows."""
        owners = Owners(context.settings.fleet.rules)
        follower = FleetFollower(
            store=context.store,
            owners=owners,
            notes=context.fleet,
            clock=context.clock,
            random_bytes=context.random_bytes,
            metrics=context.metrics,
        )
        gauges = FleetGauges(context.store, context.metrics, context.clock)
        return cls(follower, FleetJudge(context, owners, renewal, lambda: follower.behind), gauges)
