package format

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// Detect tells the format of the image at path by its content. A block device
// is always raw, and so is what no other format claims. Content can lie: a
// guest can write another format's header into its own raw disk, so give
// Options.Format where the image's origin tells the format.
func Detect(path string) (string, error) {
	in, err := openInput(path)
	if err != nil {
		return "", fmt.Errorf("format: detect: %w", err)
	}
	defer in.Close()
	f, err := detect(in)
	if err != nil {
		return "", fmt.Errorf("format: detect: %w", err)
	}
	return f, nil
}

func detect(in *input) (string, error) {
	if in.device {
		return Raw, nil
	}
	head := make([]byte, min(in.size, 512))
	if _, err := in.ReadAt(head, 0); err != nil {
		return "", err
	}
	if f := detectHead(head); f != "" {
		return f, nil
	}
	// A fixed vhd has no header, only a footer, which must fit the file:
	// the last sector of a raw disk is the guest's.
	if in.size >= 2*vhdSector && in.size%vhdSector == 0 {
		foot := make([]byte, vhdSector)
		if _, err := in.ReadAt(foot, in.size-vhdSector); err != nil {
			return "", err
		}
		f, err := parseVHDFooter(foot)
		if err == nil && f.diskType == vhdFixed && f.currentSize == in.size-vhdSector {
			return VHD, nil
		}
	}
	return Raw, nil
}

// detectHead knows the formats that begin with a mark.
func detectHead(head []byte) string {
	const vdiSignatureAt, vdiSignature = 0x40, 0xbeda107f
	switch {
	case bytes.HasPrefix(head, []byte(qcow2Magic)) && len(head) >= 8 && binary.BigEndian.Uint32(head[4:]) >= 2:
		return Qcow2
	case bytes.HasPrefix(head, []byte("KDMV")), bytes.HasPrefix(head, []byte("COWD")),
		bytes.HasPrefix(head, []byte("# Disk DescriptorFile")):
		return VMDK
	case bytes.HasPrefix(head, []byte("vhdxfile")):
		return VHDX
	case bytes.HasPrefix(head, []byte(vhdCookie)):
		return VHD
	case len(head) >= vdiSignatureAt+4 && binary.LittleEndian.Uint32(head[vdiSignatureAt:]) == vdiSignature:
		return VDI
	}
	return ""
}
