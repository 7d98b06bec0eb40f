"""`dledger dev`: a group of real processes on this machine, with a page, to try things on."""
