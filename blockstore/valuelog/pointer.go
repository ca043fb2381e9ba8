package valuelog

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"reflect"

	"github.com/dgraph-io/badger/v4"
)

// What Badger keeps of an item and does not show: a pointer into a value log, and flags
// that say whether it is one. Badger's version is pinned, and a test fails if they change;
// then nothing has a place, and everything is read through Badger.
var (
	pointerField = field("vptr", reflect.TypeFor[[]byte]())
	metaField    = field("meta", reflect.TypeFor[byte]())
)

const (
	pointerSize = 12     // u32 file, u32 length of the entry, u32 offset, as the machine has them
	isPointer   = 1 << 1 // flag of meta
	checksum    = 4      // after each entry
)

func field(name string, of reflect.Type) []int {
	f, ok := reflect.TypeFor[badger.Item]().FieldByName(name)
	if !ok || f.Type != of {
		return nil
	}
	return f.Index
}

// Pointed gives the place of an item's value, without a look at it. It is false for values
// that are in no value log. That the bytes are there is seen when they are read, and that
// they are the right ones is for the reader to see.
func (f *Files) Pointed(item *badger.Item) (Place, bool) {
	if pointerField == nil || metaField == nil {
		return Place{}, false
	}
	v := reflect.ValueOf(item).Elem()
	pointer := v.FieldByIndex(pointerField).Bytes()
	if v.FieldByIndex(metaField).Uint()&isPointer == 0 || len(pointer) < pointerSize {
		return Place{}, false
	}
	id := binary.NativeEndian.Uint32(pointer)
	length := int(binary.NativeEndian.Uint32(pointer[4:]))
	offset := int64(binary.NativeEndian.Uint32(pointer[8:]))
	start, n, ok := valueOf(length, len(item.Key())+version)
	if !ok {
		return Place{}, false
	}
	file, err := f.file(id)
	if err != nil {
		return Place{}, false
	}
	return Place{files: f, file: file, off: offset + int64(start), n: n}, true
}

// version is how many bytes follow a key in an entry.
const version = 8

// valueOf says where in an entry of so many bytes the value lies: after two flags, the
// lengths of key and value and the time of expiry (0: none), all varints, and the key.
func valueOf(entry, key int) (start, n int, ok bool) {
	const flags, expiry = 2, 1
	for width := 1; width <= binary.MaxVarintLen32; width++ {
		start = flags + varint(key) + width + expiry + key
		n = entry - start - checksum
		if n > 0 && varint(n) == width {
			return start, n, true
		}
	}
	return 0, 0, false
}

func varint(n int) int {
	return len(binary.AppendUvarint(make([]byte, 0, binary.MaxVarintLen64), uint64(n)))
}

// file opens a value log by its number, or gives it if it is open.
func (f *Files) file(id uint32) (*os.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.openLocked(filepath.Join(f.Dir, fmt.Sprintf("%06d.vlog", id)))
}
