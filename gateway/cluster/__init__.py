"""How the gateways of a cluster reach each other. A gateway without others has `memory`."""
