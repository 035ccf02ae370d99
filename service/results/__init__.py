"""Results: how one gets from the provider's URL into our own storage, and to a caller.

copier      copies one result: checked, hashed and limited while it streams
reader      reads one result from an offset: its copy, or the provider's URL
origin      opens results at the provider, with a fresh URL if a link is dead
source      downloads from URLs that are not trusted
decoding    expands what a server has compressed
hosts       which URLs may be fetched, and which addresses connected to
content     what a result is, and whether its URL announces that
recognition what its first bytes say
places      where results are kept: RESULTS_URL
objects     what is needed of a storage, and how one is opened
folder      a folder as a storage
bucket      an object store as a storage
errors      why a result was not copied
"""
