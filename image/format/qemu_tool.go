package format

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
)

// MissingToolError says that a program of QEMU's, without which a format
// cannot be read, is not installed.
type MissingToolError struct {
	Tool    string // the program
	Package string // the Debian package that has it
}

func (e *MissingToolError) Error() string {
	return fmt.Sprintf("%s is not installed: apt-get install %s", e.Tool, e.Package)
}

// The programs used, and the packages of Debian 12 that have them.
const (
	toolImg     = "qemu-img"
	toolStorage = "qemu-storage-daemon"
)

func findTool(tool string) (string, error) {
	p, err := exec.LookPath(tool)
	if err == nil {
		return p, nil
	}
	if !errors.Is(err, exec.ErrNotFound) {
		return "", err
	}
	pkg := "qemu-utils"
	if tool == toolStorage {
		pkg = "qemu-system-common"
	}
	return "", &MissingToolError{Tool: tool, Package: pkg}
}

// qemuNode describes the image at path for QEMU so that no part of the name is
// taken for a URL or an option. Without backing its backing file is left out.
func qemuNode(path, format string, backing bool) map[string]any {
	if format == VHD {
		format = "vpc"
	}
	node := map[string]any{
		"driver": format,
		"file":   map[string]any{"driver": "file", "filename": path},
	}
	if !backing {
		node["backing"] = nil
	}
	return node
}

// qemuName is qemuNode as a file name for qemu-img.
func qemuName(path, format string, backing bool) (string, error) {
	b, err := json.Marshal(qemuNode(path, format, backing))
	return "json:" + string(b), err
}

// info is what is used of the answer of qemu-img info.
type info struct {
	VirtualSize   int64  `json:"virtual-size"`
	BackingFile   string `json:"backing-filename"`
	BackingFormat string `json:"backing-filename-format"`
	Specific      struct {
		Data struct {
			CreateType string `json:"create-type"`
			Extents    []struct {
				Filename string `json:"filename"`
			} `json:"extents"`
		} `json:"data"`
	} `json:"format-specific"`
}

// flat says whether a vmdk has a place for every byte.
func (i *info) flat() bool {
	return strings.HasSuffix(i.Specific.Data.CreateType, "Flat") || i.Specific.Data.CreateType == "vmfs"
}

// qemuInfo asks about one image file, without opening its backing file.
func qemuInfo(ctx context.Context, path, format string) (*info, error) {
	const maxAnswer = 1 << 20
	spec, err := qemuName(path, format, format != VMDK)
	if err != nil {
		return nil, err
	}
	var out info
	err = runTool(ctx, toolImg, []string{"info", "--output=json", spec}, func(r io.Reader) error {
		return json.NewDecoder(io.LimitReader(r, maxAnswer)).Decode(&out)
	})
	if err != nil {
		return nil, err
	}
	if out.VirtualSize < 0 {
		return nil, fmt.Errorf("disk of %d bytes: %w", out.VirtualSize, ErrCorrupt)
	}
	return &out, nil
}

// runTool runs a short-lived program and hands its output to read.
func runTool(caller context.Context, tool string, args []string, read func(io.Reader) error) error {
	path, err := findTool(tool)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(caller)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	var stderr lastWords
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	readErr := read(out)
	cut := readErr != nil && !errors.Is(readErr, io.EOF)
	if cut {
		cancel() // it may be blocked on a pipe that nobody reads
	}
	waitErr := cmd.Wait()
	switch {
	case caller.Err() != nil:
		return caller.Err()
	case cut:
		return fmt.Errorf("%s: answer: %w", tool, readErr)
	case waitErr != nil:
		return fmt.Errorf("%s: %w%s", tool, waitErr, stderr.suffix())
	case readErr != nil:
		return fmt.Errorf("%s: answer: %w", tool, io.ErrUnexpectedEOF)
	}
	return nil
}

// lastWords keeps the beginning of what a program says on its standard error.
type lastWords struct{ b bytes.Buffer }

func (l *lastWords) Write(p []byte) (int, error) {
	const limit = 4 << 10
	l.b.Write(p[:min(len(p), limit-min(limit, l.b.Len()))])
	return len(p), nil
}

func (l *lastWords) suffix() string {
	if s := strings.TrimSpace(l.b.String()); s != "" {
		return ": " + s
	}
	return ""
}
