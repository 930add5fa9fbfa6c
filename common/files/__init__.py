"""Files of this machine: locks, private files, disk space, backups, format versions."""
