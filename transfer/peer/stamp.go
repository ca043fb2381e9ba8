package peer

import (
	"os"
	"syscall"
)

// stampOf tells one version of a file from another.
func stampOf(path string) (stamp, error) {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}, err
	}
	s := stamp{time: info.ModTime(), size: info.Size()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.node = st.Ino
	}
	return s, nil
}
