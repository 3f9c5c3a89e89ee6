package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/pkg/erofs"
	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/seek"
)

// imageInfo is what is said of an image as a whole.
type imageInfo struct {
	Superblock superInfo    `json:"superblock"`
	Devices    []deviceInfo `json:"devices"`
	Seek       *seekInfo    `json:"seek,omitempty"`
	Statistics statistics   `json:"statistics"`
}

type superInfo struct {
	BlockSize     int64    `json:"blockSize"`
	Blocks        uint64   `json:"blocks"`
	Inodes        uint64   `json:"inodes"`
	RootNid       uint64   `json:"rootNid"`
	UUID          string   `json:"uuid"`
	Label         string   `json:"label,omitempty"`
	Epoch         string   `json:"epoch"`
	Built         string   `json:"built"`
	Linux         string   `json:"linux"` // the first release that reads it
	Compatible    []string `json:"compatibleFeatures"`
	Incompatible  []string `json:"incompatibleFeatures"`
	Algorithms    []string `json:"algorithms,omitempty"`
	Size          int      `json:"size"` // bytes, of the superblock itself
	MetaBlkaddr   uint32   `json:"metaBlkaddr"`
	XattrBlkaddr  uint32   `json:"xattrBlkaddr"`
	XattrPrefixes []string `json:"xattrPrefixes,omitempty"`
	PackedNid     uint64   `json:"packedNid,omitempty"`
	MetaboxNid    uint64   `json:"metaboxNid,omitempty"`
}

type deviceInfo struct {
	Number  int    `json:"number"` // 0 is the primary device
	Tag     string `json:"tag,omitempty"`
	Size    int64  `json:"size"` // bytes
	Uniaddr uint64 `json:"uniaddr"`
	Present bool   `json:"present"`
}

type seekInfo struct {
	Error    string      `json:"error,omitempty"` // the section is there, and damaged
	Manifest string      `json:"manifest,omitempty"`
	Layers   []seekLayer `json:"layers,omitempty"`
}

type seekLayer struct {
	Digest    string `json:"digest"`
	MediaType string `json:"mediaType,omitempty"`
	Kind      string `json:"kind"`
	BlobSize  int64  `json:"blobSize"` // bytes, as stored
	Size      int64  `json:"size"`     // bytes, uncompressed
	Spans     int    `json:"spans"`
	Digests   int    `json:"digests"`
}

var compatNames = []string{"sb_chksum", "mtime", "xattr_filter", "shared_ea_in_metabox", "plain_xattr_pfx", "ishare_xattrs"}

// Bits that mean two things are told apart by what else the superblock says.
var incompatNames = []string{"zero_padding", "big_pcluster", "chunked_file", "device_table", "ztailpacking", "fragments", "xattr_prefixes", "48bit", "metabox"}

func features(bits uint32, names []string) []string {
	list := []string{}
	for i := range 32 {
		switch {
		case bits>>i&1 == 0:
		case i < len(names):
			list = append(list, names[i])
		default:
			list = append(list, fmt.Sprintf("bit%d", i))
		}
	}
	return list
}

// info says what there is to say of the image as a whole.
func (d *dump) info(ctx context.Context) error {
	i := imageInfo{Superblock: d.super(), Devices: d.devices(), Seek: d.seekSection()}
	if err := d.statistics(ctx, &i.Statistics); err != nil {
		return err
	}
	if d.flags.JSON {
		return cli.PrintJSON(d.out, i)
	}
	d.printInfo(&i)
	return nil
}

func (d *dump) super() superInfo {
	sb := d.fsys.SuperBlock()
	s := superInfo{
		BlockSize:     d.fsys.BlockSize(),
		Blocks:        sb.Blocks(),
		Inodes:        sb.Inos,
		RootNid:       sb.RootNid(),
		UUID:          fmt.Sprintf("%x-%x-%x-%x-%x", sb.UUID[0:4], sb.UUID[4:6], sb.UUID[6:8], sb.UUID[8:10], sb.UUID[10:16]),
		Label:         d.fsys.Label(),
		Epoch:         timeString(time.Unix(sb.Epoch, int64(sb.FixedNsec))),
		Built:         time.Unix(sb.Epoch+int64(sb.BuildTime), 0).UTC().Format(time.RFC3339),
		Linux:         linuxFor(&sb),
		Size:          sb.Size(),
		Compatible:    features(sb.FeatureCompat, compatNames),
		Incompatible:  features(sb.FeatureIncompat, incompatNames),
		MetaBlkaddr:   sb.MetaBlkaddr,
		XattrBlkaddr:  sb.XattrBlkaddr,
		XattrPrefixes: d.fsys.XattrPrefixes(),
	}
	if sb.FeatureIncompat&ondisk.IncompatComprCfgs != 0 {
		for a := range erofs.Algorithm(ondisk.AlgMax) {
			if sb.ComprAlgs>>a&1 != 0 {
				s.Algorithms = append(s.Algorithms, a.String())
			}
		}
	}
	if sb.FeatureIncompat&ondisk.IncompatFragments != 0 {
		s.PackedNid = sb.PackedNid
	}
	if sb.FeatureIncompat&ondisk.IncompatMetabox != 0 {
		s.MetaboxNid = sb.MetaboxNid
	}
	return s
}

func (d *dump) devices() []deviceInfo {
	var list []deviceInfo
	for i, v := range d.fsys.Devices() {
		list = append(list, deviceInfo{i, v.Tag, v.Size, v.Uniaddr, v.Present})
	}
	return list
}

// seekSection reads the seek section; nil if there is none.
func (d *dump) seekSection() *seekInfo {
	sb := d.fsys.SuperBlock()
	s, err := seek.Read(d.image, int64(sb.Blocks())*d.fsys.BlockSize())
	if errors.Is(err, fault.ErrNotFound) {
		return nil
	}
	if err != nil {
		return &seekInfo{Error: err.Error()}
	}
	info := &seekInfo{}
	if s.Manifest != nil {
		info.Manifest = string(s.Manifest.Digest)
	}
	for _, l := range s.Layers {
		digests := 0
		for i := range l.Spans {
			digests += len(l.Spans[i].Digests)
		}
		info.Layers = append(info.Layers, seekLayer{string(l.Descriptor.Digest), l.Descriptor.MediaType, l.Kind.String(),
			l.Descriptor.Size, l.Size, len(l.Spans), digests})
	}
	return info
}

func (d *dump) printInfo(i *imageInfo) {
	s := &i.Superblock
	row := func(name, format string, args ...any) {
		if name != "" { // else the row goes on with the one above
			name += ":"
		}
		fmt.Fprintf(d.out, "%-15s %s\n", name, fmt.Sprintf(format, args...))
	}
	row("image", "%s, %d blocks of %d bytes", cli.Size(int64(s.Blocks)*s.BlockSize), s.Blocks, s.BlockSize)
	row("uuid", "%s", s.UUID)
	if s.Label != "" {
		row("label", "%s", quoteName(s.Label))
	}
	row("built", "%s", s.Built)
	row("epoch", "%s", s.Epoch)
	row("inodes", "%d, root nid %s", s.Inodes, erofs.FormatNid(s.RootNid))
	row("metadata", "superblock of %d bytes, inodes from block %d on, shared xattrs from block %d on", s.Size, s.MetaBlkaddr, s.XattrBlkaddr)
	row("compatible", "%s", or(strings.Join(s.Compatible, " "), "none"))
	row("incompatible", "%s", or(strings.Join(s.Incompatible, " "), "none"))
	row("linux", "%s or later", s.Linux)
	if len(s.Algorithms) > 0 {
		row("algorithms", "%s", strings.Join(s.Algorithms, " "))
	}
	if len(s.XattrPrefixes) > 0 {
		row("xattr prefixes", "%s", quoteName(strings.Join(s.XattrPrefixes, " ")))
	}
	if s.PackedNid != 0 {
		row("packed inode", "nid %s", erofs.FormatNid(s.PackedNid))
	}
	if s.MetaboxNid != 0 {
		row("metabox inode", "nid %d", s.MetaboxNid)
	}
	for _, v := range i.Devices[1:] {
		at := ""
		if v.Uniaddr != 0 {
			at = fmt.Sprintf(", from block %d on", v.Uniaddr)
		}
		if !v.Present {
			at += ", not at hand"
		}
		row(fmt.Sprintf("device %d", v.Number), "%s%s  %s", cli.Size(v.Size), at, quoteName(v.Tag))
	}
	d.printSeek(i.Seek, row)
	d.printStatistics(&i.Statistics, row)
}

func (d *dump) printSeek(s *seekInfo, row func(name, format string, args ...any)) {
	switch {
	case s == nil:
		return
	case s.Error != "":
		row("seek section", "damaged: %s", s.Error)
		return
	}
	row("seek section", "%s", cli.Count(len(s.Layers), "layer"))
	if s.Manifest != "" {
		row("  manifest", "%s", s.Manifest)
	}
	for i, l := range s.Layers {
		row(fmt.Sprintf("  layer %d", i), "%s of %s (%s uncompressed), %s, %s", cli.Size(l.BlobSize), l.Kind, cli.Size(l.Size),
			cli.Count(l.Spans, "span"), cli.Count(l.Digests, "digest"))
		row("", "%s", l.Digest)
	}
}

func or(s, empty string) string {
	if s == "" {
		return empty
	}
	return s
}
