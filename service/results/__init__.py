"""Results that are kept: how a result gets from the provider's URL into our own storage.

copier      copies one result: checked, hashed and limited while it streams
source      downloads from URLs that are not trusted
hosts       which URLs may be fetched, and which addresses connected to
content     what a result is, by its first bytes
places      where results are kept: RESULTS_URL
objects     what is needed of a storage, and how one is opened
folder      a folder as a storage
bucket      an object store as a storage
errors      why a result was not copied
"""
