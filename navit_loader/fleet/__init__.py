"""Many machines: what is spread over a cluster that others run.

Takes: the address of a Ray cluster. Gives: offline work done there (`jobs`). May not know: what the work is; every machine sees
the same files under the same paths.
"""
