package fs

// jobs are what the tests' child processes do on a mount.
var jobs = map[string]func(args []string) error{}
