"""Files of this machine: locks, private files, room on the disk, backups, versions of formats."""
