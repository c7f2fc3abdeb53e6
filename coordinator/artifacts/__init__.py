"""The artifact store: blobs named by their SHA-256, in a folder or a bucket that replicas share.

base                what every kind of store can do
folder              in a folder, e.g. on a volume that all replicas mount
bucket              in an S3 bucket (or one of Google's or Azure's)
partial             uploads in progress, in files that grow
quota               how much more the store may hold
garbage_collection  deletes blobs that nothing references, while everything else continues
"""
