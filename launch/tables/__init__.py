"""Systems to be compared by `launch.table`: each file has `rows()`."""
