"""Stores as agents use them; those that need no connection to the coordinator are in `storage`.

blobs, relay   `relay://`: the coordinator's own store, over the agent's connection to it
input_cache    the files that are uploaded with runs, fetched once per host
publishing     the store that one attempt publishes to, as its run file names it
retry          waiting for a store that is away
transfers      the progress of uploads
"""
