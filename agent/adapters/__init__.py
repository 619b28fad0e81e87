"""Adapters of the agent's ports: libvirt, netlink, kernel files, and the simulated host."""
