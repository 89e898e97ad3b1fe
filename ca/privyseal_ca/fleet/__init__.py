"""The fleet: workloads, whose they are, and whether they renew.

Nothing here uses HTTP or looks at a clock. What reads or writes rows does it in a store or transaction of the caller's.
"""
