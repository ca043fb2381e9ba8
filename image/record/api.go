package record

import (
	"io"
	"time"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
)

type PlanStats struct {
	LinkBits               int64
	RTT                    time.Duration
	Planned, Merged, Count uint64
}
type Body struct {
	Size, BlockSize int64
	Compression     Compression
	Plan            PlanStats
	Time            time.Time
	Labels          map[string]string
	Floor           blockstore.Position
}
type Commit struct {
	blockstore.CommitPublic
	Body
}

// Commit seals c.Body, then calls sign with all of the record and appends the 64 bytes it returns.
func (s Seal) Commit(c *Commit, sign func(b []byte) []byte) ([]byte, error) { panic("soon") }

// OpenCommit checks neither signature nor lease: raw must come with a lease chain that was checked.
func OpenCommit(k *crypto.Keyring, raw []byte) (*Commit, error) { panic("soon") }

type Snapshot struct {
	Commit blockstore.CommitID
	Name   string
	Time   time.Time
}

func (s Seal) Snapshots(list []Snapshot) ([]byte, error)            { panic("soon") }
func OpenSnapshots(k *crypto.Keyring, b []byte) ([]Snapshot, error) { panic("soon") }

// FindSnapshot looks a name up by its tag, without opening the body.
func FindSnapshot(k *crypto.Keyring, b []byte, name string) (blockstore.CommitID, bool, error) {
	panic("soon")
}

type Range struct {
	Offset, Length int64
	Burst, Ms      uint32
}
type Lineage struct {
	Image  blockstore.ImageID
	Commit blockstore.CommitID
}
type DepMap struct {
	Startup []Range
	Lineage *Lineage
}

func (s Seal) DepMap(m *DepMap) ([]byte, error)               { panic("soon") }
func OpenDepMap(k *crypto.Keyring, b []byte) (*DepMap, error) { panic("soon") }

const JournalHeaderSize = 4096
const MaxJournalData = 4 << 20

type JournalHeader struct {
	Suite  crypto.Suite
	Image  blockstore.ImageID
	Host   [32]byte // public host key
	Era    blockstore.Era
	Term   blockstore.Term
	Epoch  crypto.EpochID
	Salt   crypto.Salt
	Number blockstore.JournalNumber
	Base   blockstore.CommitID
}

func ParseJournalHeader(b []byte) (JournalHeader, error) { panic("soon") } // b: 4096 bytes

type OpKind uint8

const (
	OpWrite  OpKind = 1
	OpZero   OpKind = 2
	OpResize OpKind = 3
)

type Op struct {
	Kind OpKind
	A, B uint64
}
type JournalSealer struct{}

// NewJournalSealer fills in Suite, Epoch and a fresh Salt.
func NewJournalSealer(seal Seal, h JournalHeader) (*JournalSealer, error) { panic("soon") }
func (w *JournalSealer) Header() []byte                                   { panic("soon") } // 4096 bytes

// Record appends one sealed record, zero padded to a multiple of 4096 bytes, to dst. durable: offset in the file up to which all is durable.
func (w *JournalSealer) Record(dst []byte, ops []Op, data [][]byte, durable uint64) ([]byte, error) {
	panic("soon")
}

type JournalScanner struct{}

func NewJournalScanner(k *crypto.Keyring, r io.ReaderAt, size int64) (*JournalScanner, error) {
	panic("soon")
}                                                                             // reads and checks the header
func (s *JournalScanner) Header() JournalHeader                               { panic("soon") }
func (s *JournalScanner) Next() (ops []Op, data []byte, off int64, err error) { panic("soon") } // data valid until the next call

type Entry struct {
	Name   string
	Image  blockstore.ImageID
	Labels map[string]string
}
type Catalogue struct {
	Counter uint64
	Entries []Entry // sorted by name
}

// CatalogueKey derives a catalogue's key from the host key.
type CatalogueKey func(salt crypto.Salt, header []byte) crypto.Key

func SealCatalogue(suite crypto.Suite, store blockstore.StoreID, key CatalogueKey, c *Catalogue) ([]byte, error) {
	panic("soon")
}
func OpenCatalogue(store blockstore.StoreID, key CatalogueKey, b []byte) (*Catalogue, error) {
	panic("soon")
}
