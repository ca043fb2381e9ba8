package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/internal/daemon"
)

func importCommand() *cli.Command {
	return &cli.Command{
		Name:      "import",
		Usage:     "seal a disk image, a block device or a stream as the image NAME",
		ArgsUsage: "SRC NAME",
		Description: `SRC is a file (raw, qcow2, vmdk, vhd, vhdx, vdi), a block device, or for a raw image as a
stream - or a named pipe. What is not known to be raw should be named by --format: a guest
can write the header of another format into its own raw disk.
A file with a backing chain becomes a clone: each backing file is imported once, as an
image of its own that is named after it, and shared by all that depend on it.
--base starts from a clone of an image in the store, compares, and seals what differs.
--update compares SRC with the existing image NAME and seals what changed, in place: cut
short it leaves a mixture, which the same command completes.
The host's own recipients can always open the image; --recipient adds others.

Example: sealdisk import debian.qcow2 debian
         ssh host cat /dev/vg/root-snap | sealdisk import - root`,
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "recipient", Aliases: []string{"r"}, Usage: "`RECIPIENT` that can open the image too; may be repeated"},
			&cli.StringFlag{Name: "recipients-file", Aliases: []string{"R"}, Usage: "`FILE` of recipients, one a line"},
			&cli.BoolFlag{Name: "allow-classic", Usage: "accept recipients that are not post-quantum"},
			&cli.StringFlag{Name: "link", Usage: "`RATE/RTT` of the path it will travel, such as 1gbit/5ms: sets the block size"},
			&cli.StringFlag{Name: "block-size", Usage: "planning grid in `BYTES`, a power of two from 64K to 1M"},
			&cli.StringFlag{Name: "compress", Usage: "`HOW` segments are compressed: zstd, s2 or none", Value: "zstd"},
			&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "`FORMAT` of SRC; detected if not given"},
			&cli.StringFlag{Name: "base", Usage: "`NAME[@SNAP]` to start from"},
			&cli.BoolFlag{Name: "update", Usage: "bring the existing image NAME up to date"},
		},
		Action: importImage,
	}
}

func importImage(c *cli.Context) error {
	a, err := args(c, 2, 2)
	if err != nil {
		return err
	}
	e := envOf(c)
	r := daemon.ImportRequest{
		Name: a[1], AllowClassic: c.Bool("allow-classic"), Link: c.String("link"), Compress: c.String("compress"),
		Format: c.String("format"), Base: c.String("base"), Update: c.Bool("update"),
	}
	if r.Recipients, err = recipientsOf(c.StringSlice("recipient"), c.String("recipients-file")); err != nil {
		return err
	}
	if s := c.String("block-size"); s != "" {
		if r.BlockSize, err = parseSize(s); err != nil {
			return err
		}
	}
	body, err := streamOf(a[0])
	if err != nil {
		return err
	}
	if body == nil {
		if r.Path, err = filepath.Abs(a[0]); err != nil {
			return err
		}
	} else {
		defer body.Close()
	}
	var done daemon.Imported
	if err := e.call(c, daemon.OpImport, r, reader(body), &done); err != nil {
		return err
	}
	return e.print(done, func(w io.Writer) {
		fmt.Fprintf(w, "%s  %s, %s read", done.Name, bytesText(done.Size), bytesText(done.Read))
		if s := done.Segments; s != nil {
			fmt.Fprintf(w, "; %d blocks planned, %d merged, %d segments, %.0f %% fewer\n", s.Planned, s.Merged, s.Count, s.ReductionPercent)
		} else {
			fmt.Fprintf(w, "; %s changed\n", bytesText(done.Changed))
		}
	})
}

// streamOf opens what can be read only once: "-" and pipes by name. It gives nil
// for the rest, which the daemon opens.
func streamOf(path string) (*os.File, error) {
	if path == "-" {
		return os.Stdin, nil
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Mode()&os.ModeNamedPipe == 0 {
		return nil, nil // the daemon says what is wrong with it
	}
	return os.Open(path)
}

// reader keeps a file that is nil from becoming an io.Reader that is not.
func reader(f *os.File) io.Reader {
	if f == nil {
		return nil
	}
	return f
}

// recipientsOf joins recipients from flags and from a file.
func recipientsOf(list []string, file string) ([]string, error) {
	if file == "" {
		return list, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	more, err := crypto.ParseRecipients(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return append(list, more...), nil
}

func exportCommand() *cli.Command {
	return &cli.Command{
		Name:      "export",
		Usage:     "write an image or a snapshot out as a plain raw or qcow2 file",
		ArgsUsage: "NAME[@SNAP] DST",
		Description: `DST is a file, or with --force a block device that is large enough. The file appears
when it is complete. Of an image that a guest is writing, export a snapshot.

Example: sealdisk export debian@monday /srv/debian.img`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "`FORMAT`: raw or qcow2", Value: "raw"},
			&cli.BoolFlag{Name: "force", Usage: "replace an existing file, or write to a device"},
		},
		BashComplete: completeImages,
		Action: func(c *cli.Context) error {
			a, err := args(c, 2, 2)
			if err != nil {
				return err
			}
			r := daemon.ExportRequest{Name: a[0], Format: c.String("format"), Force: c.Bool("force")}
			if r.Path, err = filepath.Abs(a[1]); err != nil {
				return err
			}
			e := envOf(c)
			var done daemon.Exported
			if err := e.call(c, daemon.OpExport, r, nil, &done); err != nil {
				return err
			}
			return e.print(done, func(w io.Writer) {
				fmt.Fprintf(w, "%s  %s, %s of it data\n", done.Path, bytesText(done.Size), bytesText(done.Data))
			})
		},
	}
}
