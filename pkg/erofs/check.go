package erofs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
)

// A Rule is the name of something that holds in every sound image.
type Rule string

const (
	RuleChecksum Rule = "superblock-checksum"    // the superblock's checksum is right
	RuleInos     Rule = "superblock-inos"        // there are no more inodes than the superblock counts
	RuleSize     Rule = "image-size"             // the image holds all its blocks
	RuleConfig   Rule = "compression-config"     // the algorithms' configurations are what Linux takes
	RuleDevices  Rule = "device-table"           // devices do not overlap in the one address space
	RuleInode    Rule = "inode"                  // an inode can be decoded, its time is one
	RuleDirBlock Rule = "directory-block"        // a directory's blocks can be decoded, its names are names
	RuleDirOrder Rule = "directory-order"        // names ascend
	RuleDot      Rule = "directory-dot"          // "." is the directory itself
	RuleDotDot   Rule = "directory-dotdot"       // ".." is its parent
	RuleDirOnce  Rule = "directory-reached-once" // a directory has one name
	RuleType     Rule = "entry-type"             // an entry's type is its inode's
	RuleNlink    Rule = "link-count"             // an inode's link count is the number of its names
	RuleSymlink  Rule = "symlink"                // a symbolic link's target can be read
	RuleXattr    Rule = "xattr"                  // extended attributes can be decoded
	RuleFilter   Rule = "xattr-filter"           // the name filter does not deny a name that is there
	RuleExtent   Rule = "extent"                 // what maps a file to its blocks can be decoded
	RuleBounds   Rule = "extent-bounds"          // extents lie within their device
	RuleOverlap  Rule = "metadata-overlap"       // metadata shares no bytes with anything
	RuleData     Rule = "data"                   // contents can be read
)

// Rules are all of them.
var Rules = []Rule{RuleChecksum, RuleInos, RuleSize, RuleConfig, RuleDevices, RuleInode, RuleDirBlock, RuleDirOrder, RuleDot, RuleDotDot,
	RuleDirOnce, RuleType, RuleNlink, RuleSymlink, RuleXattr, RuleFilter, RuleExtent, RuleBounds, RuleOverlap, RuleData}

// A Problem is a rule that an image breaks, and where.
type Problem struct {
	Rule   Rule
	Nid    uint64 // of the inode; 0 with no Path: the image as a whole
	Path   string // a name of the inode; "." is the root
	Detail string
}

func (p Problem) String() string {
	if p.Path == "" {
		return fmt.Sprintf("%s: %s", p.Rule, p.Detail)
	}
	return fmt.Sprintf("%s: %q: %s", p.Rule, p.Path, p.Detail)
}

// CheckOptions says what Check looks at; the zero value looks at the metadata.
type CheckOptions struct {
	// Data reads the contents of all files too. Data on devices that are not
	// at hand is left out.
	Data bool
}

// Checked is what Check has seen.
type Checked struct {
	Inodes, Directories, Entries uint64
	Bytes                        int64 // of contents, where they were read
}

// Check goes through a whole image and reports each problem that it finds. An
// image whose superblock or root is unreadable does not get as far: Open
// refuses it, but for the checksum, which WithoutChecksum leaves to Check. The
// error is the context's alone.
func (f *FS) Check(ctx context.Context, o CheckOptions, report func(Problem)) (Checked, error) {
	c := &checker{
		f:       f,
		ctx:     ctx,
		o:       o,
		report:  report,
		names:   make(map[uint64]uint32),
		paths:   make(map[uint64]*pathNode),
		room:    f.metaSize(),
		indexes: f.metaSize(),
		shared:  make(map[uint32]bool),
	}
	c.super()
	c.configs()
	c.deviceTable()
	c.tree()
	if err := ctx.Err(); err != nil {
		return c.seen, err
	}
	c.links()
	c.overlaps()
	c.sharedPclusters()
	return c.seen, nil
}

type checker struct {
	f       *FS
	ctx     context.Context
	o       CheckOptions
	report  func(Problem)
	seen    Checked
	names   map[uint64]uint32    // references to each inode that was met
	paths   map[uint64]*pathNode // the first name of those that may have a problem to report later
	room    int64                // bytes that further directories may take up
	indexes int64                // bytes that further indexes may take up
	shared  map[uint32]bool      // shared xattrs whose place is noted
	buf     []byte               // for contents
	ranges  [2][]byteRange       // metadata and data: of the primary device, of the metabox

	pclusters []pcluster // of encoded extents
}

// problem reports a problem of an inode.
func (c *checker) problem(r Rule, nid uint64, at *pathNode, format string, args ...any) {
	c.report(Problem{Rule: r, Nid: nid, Path: at.path(), Detail: fmt.Sprintf(format, args...)})
}

// imageProblem reports one of the image as a whole.
func (c *checker) imageProblem(r Rule, format string, args ...any) {
	c.report(Problem{Rule: r, Detail: fmt.Sprintf(format, args...)})
}

// named is what stands for a path where there is none.
func (c *checker) named(name string) *pathNode { return (*pathNode)(nil).join(name) }

// dirTask is a directory to go through.
type dirTask struct {
	nid, parent uint64
	at          *pathNode
}

// tree goes through all that can be reached. It keeps a list of its own
// instead of recursing: an image may nest directories as deep as it likes.
func (c *checker) tree() {
	root := c.f.RootNid()
	for _, special := range []struct {
		nid uint64
		at  *pathNode
		ok  bool
	}{
		{c.f.sb.MetaboxNid, c.named("(metabox)"), c.f.metabox != nil},
		{c.f.sb.PackedNid, c.named("(packed)"), c.f.packed != nil},
	} {
		if special.ok {
			if ino, err := c.f.inode(special.nid); err == nil { // Open has read it
				ino.noFragments = true
				c.note(ino.space, ino.Offset, ino.end()-ino.Offset, ino.Nid, true)
				c.contents(ino, special.at)
			}
		}
	}
	c.names[root] = 0
	todo := []dirTask{{root, root, nil}}
	if ino, err := c.f.inode(root); err == nil {
		c.inode(ino, nil)
	}
	for len(todo) > 0 && c.ctx.Err() == nil {
		t := todo[len(todo)-1]
		todo = c.directory(t, todo[:len(todo)-1])
	}
}

// directory checks a directory's entries, and the inodes that it is the first
// to name. It appends the directories in it to the list.
func (c *checker) directory(t dirTask, todo []dirTask) []dirTask {
	ino, err := c.f.inode(t.nid)
	if err != nil {
		return todo // reported when it was met
	}
	c.seen.Directories++
	if c.room, err = c.f.takeRoom(ino, c.room); err != nil {
		c.problem(RuleDirBlock, t.nid, t.at, "%v", err)
		return todo
	}
	dot, dotdot := ino.dotOmitted, false
	subdirs := uint32(0)
	err = c.f.dirents(ino, func(e Dirent) error {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		c.seen.Entries++
		switch e.Name {
		case ".":
			dot = true
			if e.Nid != t.nid || e.Type != ondisk.FTDir {
				c.problem(RuleDot, t.nid, t.at, "it is nid %s of type %d", FormatNid(e.Nid), e.Type)
			}
			return nil
		case "..":
			dotdot = true
			if e.Nid != t.parent || e.Type != ondisk.FTDir {
				c.problem(RuleDotDot, t.nid, t.at, "it is nid %s of type %d, the parent is nid %s", FormatNid(e.Nid), e.Type, FormatNid(t.parent))
			}
			return nil
		}
		if e.Type == ondisk.FTDir {
			subdirs++
		}
		if at := t.at.join(e.Name); c.entry(e, at) {
			todo = append(todo, dirTask{e.Nid, t.nid, at})
		}
		return nil
	})
	if c.ctx.Err() != nil {
		return nil
	}
	if err != nil {
		rule := RuleDirBlock
		if errors.Is(err, errOrder) {
			rule = RuleDirOrder
		}
		c.problem(rule, t.nid, t.at, "%v", err)
		return todo
	}
	if !dot {
		c.problem(RuleDot, t.nid, t.at, "there is none")
	}
	if !dotdot {
		c.problem(RuleDotDot, t.nid, t.at, "there is none")
	}
	// One link is how file systems say that they do not count subdirectories.
	if ino.Nlink != 2+subdirs && ino.Nlink != 1 {
		c.problem(RuleNlink, t.nid, t.at, "link count %d of a directory of %d directories", ino.Nlink, subdirs)
	}
	return todo
}

// entry checks an entry, and its inode if it is the first to name it. It says
// whether that is a directory to go through.
func (c *checker) entry(e Dirent, at *pathNode) bool {
	ino, err := c.f.inode(e.Nid)
	if err != nil {
		c.problem(RuleInode, e.Nid, at, "%v", err)
		return false
	}
	if want := ondisk.FileType(uint16(ino.Mode)); e.Type != want {
		c.problem(RuleType, e.Nid, at, "the entry's type is %d, the inode's mode %#o", e.Type, ino.Mode)
	}
	n, met := c.names[e.Nid]
	c.names[e.Nid] = n + 1
	if met {
		if ino.isDir() {
			c.problem(RuleDirOnce, e.Nid, at, "nid %s is met again", FormatNid(e.Nid))
		}
		return false
	}
	if ino.Nlink > 1 || ino.Nlink == 0 {
		c.paths[e.Nid] = at
	}
	c.inode(ino, at)
	return ino.isDir()
}

// inode checks what belongs to one inode.
func (c *checker) inode(ino *inode, at *pathNode) {
	c.seen.Inodes++
	c.note(ino.space, ino.Offset, ino.end()-ino.Offset, ino.Nid, true)
	if ino.nsec >= 1e9 {
		c.problem(RuleInode, ino.Nid, at, "a time with %d nanoseconds", ino.nsec)
	}
	chunked := ino.Layout == ondisk.LayoutChunkBased
	// These came with the feature: Linux before 6.15 refuses them.
	if !c.f.has(ondisk.Incompat48Bit) {
		if ino.format&ondisk.FormatNlink1 != 0 {
			c.problem(RuleInode, ino.Nid, at, "format %#x without the 48BIT feature", ino.format)
		}
		if chunked && ino.u&ondisk.Chunk48Bit != 0 {
			c.problem(RuleInode, ino.Nid, at, "chunk format %#x without the 48BIT feature", ino.u)
		}
		if ino.Layout == ondisk.LayoutFlatPlain && ino.startblk < 0 && ino.hasData() && ino.Size > 0 {
			c.problem(RuleExtent, ino.Nid, at, "%d bytes without a first block and without the 48BIT feature", ino.Size)
		}
	}
	c.xattrs(ino, at)
	if ino.hasData() && ino.Size > 0 {
		c.contents(ino, at)
	} else if chunked { // Linux wants to know the chunks of what has none, too
		if _, err := c.f.newChunkTable(ino); err != nil {
			c.problem(RuleInode, ino.Nid, at, "%v", err)
		}
	}
	if ino.IsSymlink() {
		if _, err := c.f.readLink(ino); err != nil && !errors.Is(err, ErrNoDevice) {
			c.problem(RuleSymlink, ino.Nid, at, "%v", err)
		}
	}
}

// xattrs checks an inode's extended attributes.
func (c *checker) xattrs(ino *inode, at *pathNode) {
	list, err := c.f.xattrs(ino)
	if err != nil {
		c.problem(RuleXattr, ino.Nid, at, "%v", err)
		return
	}
	switch ino.XattrSize {
	case 0:
		return
	case ondisk.XattrHeaderSize:
		c.problem(RuleXattr, ino.Nid, at, "a header without attributes, which Linux does not take")
		return
	}
	b, err := ino.space.read(ino.Offset+ino.isize, ondisk.XattrHeaderSize)
	if err != nil {
		return // xattrs has read it
	}
	var h ondisk.XattrHeader
	h.Decode(b)
	c.sharedXattrs(ino, &h)
	if c.f.sb.FeatureCompat&ondisk.CompatXattrFilter == 0 || c.f.sb.XattrFilterRsvd != 0 {
		return
	}
	for _, x := range list {
		index, suffix := splitXattr(x.Name)
		if h.NameFilter&ondisk.XattrFilterBit(index, suffix) != 0 {
			c.problem(RuleFilter, ino.Nid, at, "filter %08x denies %q", h.NameFilter, x.Name)
		}
	}
}

// splitXattr finds a name's predefined prefix.
func splitXattr(name string) (index uint8, suffix string) {
	for i, p := range ondisk.XattrPrefixes {
		if p != "" && len(name) >= len(p) && name[:len(p)] == p {
			return uint8(i), name[len(p):]
		}
	}
	return 0, name
}

// links compares link counts with the names that were found.
func (c *checker) links() {
	f := c.f
	if counted := c.seen.Inodes; f.sb.Inos < counted {
		c.imageProblem(RuleInos, "the superblock counts %d inodes, %d were found", f.sb.Inos, counted)
	}
	nids := slices.Sorted(maps.Keys(c.names))
	for _, nid := range nids {
		n := c.names[nid]
		ino, err := f.inode(nid)
		if err != nil || ino.isDir() {
			continue
		}
		if ino.Nlink != n {
			at := c.paths[nid]
			if at == nil {
				at = c.named("nid " + FormatNid(nid))
			}
			c.problem(RuleNlink, nid, at, "link count %d, but %d names", ino.Nlink, n)
		}
	}
}
