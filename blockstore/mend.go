package blockstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/table"
)

// What a power cut can leave of writes that nobody was told of, and Badger would refuse
// to open over, is put right here before it opens. All of it is told apart from damage
// to what was durable: that stays an error.

const (
	logHeader = 20  // of a memtable's log and of a value log; zeros in it say: not encrypted
	diskUnit  = 512 // bytes that a disk writes whole
	noTail    = -1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func mend(dir string, opt badger.Options) error {
	for _, step := range []func(string) error{mendLogs, syncLogs} {
		if err := step(dir); err != nil {
			return fmt.Errorf("blockstore: open: %w", err)
		}
	}
	if err := mendManifest(filepath.Join(dir, badger.ManifestFilename)); err != nil {
		return fmt.Errorf("blockstore: open: %w", err)
	}
	return mendTables(dir, opt)
}

// mendLogs gives a header to logs whose name became durable before anything else of
// them. An empty value log may not just go: its number must not be used again.
func mendLogs(dir string) error {
	for _, pattern := range []string{"*.mem", "*.vlog"} {
		paths, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return err
		}
		for _, path := range paths {
			if st, err := os.Stat(path); err != nil {
				return err
			} else if st.Size() > 0 {
				continue
			}
			if err := os.Truncate(path, logHeader); err != nil {
				return err
			}
		}
	}
	return nil
}

// syncLogs makes durable what Badger is about to read. A process that was killed may have
// left writes that nobody has synced; what is built on them (an anchor, a journal that
// goes) must not outlive them. Older value logs were synced when they were finished.
func syncLogs(dir string) error {
	logs, err := filepath.Glob(filepath.Join(dir, "*.vlog"))
	if err != nil {
		return err
	}
	slices.Sort(logs)
	logs = logs[max(0, len(logs)-2):]
	more, err := filepath.Glob(filepath.Join(dir, "*.mem"))
	if err != nil {
		return err
	}
	for _, path := range append(append(logs, more...), filepath.Join(dir, badger.ManifestFilename)) {
		f, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) { // the manifest of a store that was not finished
			continue
		}
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return syncDir(dir)
}

// mendManifest cuts off a last record that was being appended: some unit of it was
// never written.
func mendManifest(path string) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	at := unwrittenTail(b)
	if at == noTail {
		return nil
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(int64(at)), f.Sync(), f.Close())
}

// unwrittenTail finds where a manifest (8 bytes, then records u32 length, u32 CRC-32C,
// changes) stops making sense, if what follows has a unit of zeros.
func unwrittenTail(b []byte) int {
	at := 8
	for next := at; next+8 <= len(b); {
		n := int(binary.BigEndian.Uint32(b[next:]))
		body := b[next+8:]
		if n > len(body) || crc32.Checksum(body[:n], castagnoli) != binary.BigEndian.Uint32(b[next+4:]) {
			break
		}
		if next += 8 + n; n > 0 { // an empty one means nothing, and is what zeros look like
			at = next
		}
	}
	for from := at; from < len(b); {
		to := min((from/diskUnit+1)*diskUnit, len(b))
		if len(bytes.Trim(b[from:to], "\x00")) == 0 {
			return at
		}
		from = to
	}
	return noTail
}

// mendTables strikes from the manifest tables of level 0 whose names had not become
// durable: Badger names them there without syncing the folder. The memtable's log that
// such a table was written from is still there then, since it goes later.
func mendTables(dir string, opt badger.Options) error {
	f, err := os.OpenFile(filepath.Join(dir, badger.ManifestFilename), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // a new store
	}
	if err != nil {
		return fmt.Errorf("blockstore: open: %w", err)
	}
	defer f.Close()
	manifest, end, err := badger.ReplayManifestFile(f, opt.ExternalMagicVersion, opt)
	if err != nil {
		return &CorruptError{What: "store", Key: badger.ManifestFilename, Cause: err}
	}
	var changes []byte // {1: {1: id, 2: deletion}} in protocol buffers, repeated
	n := 0
	for id, t := range manifest.Tables {
		if _, err := os.Stat(table.NewFilename(id, dir)); errors.Is(err, os.ErrNotExist) && t.Level == 0 {
			change := append(binary.AppendUvarint([]byte{0x08}, id), 0x10, 0x01)
			changes = append(append(changes, 0x0a, byte(len(change))), change...)
			n++
		}
	}
	if n == 0 {
		return nil
	}
	if full, err := fullLogs(dir); err != nil || n > full {
		return err // Badger says what is missing
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(len(changes)))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(changes, castagnoli))
	_, err = f.WriteAt(append(b, changes...), end)
	if err = errors.Join(err, f.Sync()); err != nil {
		return fmt.Errorf("blockstore: open: %w", err)
	}
	return nil
}

// fullLogs counts the logs of memtables that hold anything. Badger empties a log before
// it removes it: an empty one stands for no table.
func fullLogs(dir string) (n int, err error) {
	logs, err := filepath.Glob(filepath.Join(dir, "*.mem"))
	if err != nil {
		return 0, fmt.Errorf("blockstore: open: %w", err)
	}
	for _, path := range logs {
		f, err := os.Open(path)
		if err != nil {
			return 0, fmt.Errorf("blockstore: open: %w", err)
		}
		var head [logHeader + 64]byte
		k, err := f.ReadAt(head[:], 0)
		f.Close()
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("blockstore: open: %w", err)
		}
		if len(bytes.Trim(head[min(k, logHeader):k], "\x00")) > 0 {
			n++
		}
	}
	return n, nil
}
