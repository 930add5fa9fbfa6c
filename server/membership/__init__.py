"""The members of a federation, their certificates and keys, and their enrolment."""
