"""The coordinator's own store: bytes named by their SHA-256, in a folder or a bucket that replicas share.

base        what every kind of it can do
folder      in a folder, e.g. on a volume that all replicas mount
bucket      in an S3 bucket (or one of Google's or Azure's)
partial     uploads on their way, in files that grow
quota        how much may still come
collecting  what nothing names any more goes, while everything else goes on
"""
