package main

import (
	"context"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// udev prints what udev's rules import of a file system, in the form and with
// the escapes of blkid -o udev.
func (d *dump) udev(context.Context) error {
	s := d.super()
	fmt.Fprintf(d.out, "ID_FS_UUID=%s\nID_FS_UUID_ENC=%[1]s\n", s.UUID)
	if s.Label != "" {
		fmt.Fprintf(d.out, "ID_FS_LABEL=%s\nID_FS_LABEL_ENC=%s\n", udevSafe(s.Label), udevEncode(s.Label))
	}
	_, err := fmt.Fprint(d.out, "ID_FS_TYPE=erofs\nID_FS_USAGE=filesystem\n")
	return err
}

// udevSafe puts an underscore for what does not print, blanks included.
func udevSafe(s string) string {
	return escape(s, func(rune) bool { return true }, func(string) string { return "_" })
}

// udevEncode puts \x20 for whatever might mean something to somebody, so that
// nothing is lost.
func udevEncode(s string) string {
	plain := func(c rune) bool {
		return c >= utf8.RuneSelf || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.ContainsRune("#+-.:=@_", c)
	}
	return escape(s, plain, func(c string) string {
		var b strings.Builder
		for i := range len(c) {
			fmt.Fprintf(&b, `\x%02x`, c[i])
		}
		return b.String()
	})
}

// escape replaces the characters of a string that are not plain, and those that
// do not print.
func escape(s string, plain func(rune) bool, replace func(string) string) string {
	var b strings.Builder
	for len(s) > 0 {
		c, n := utf8.DecodeRuneInString(s)
		invalid := c == utf8.RuneError && n == 1
		if !invalid && unicode.IsGraphic(c) && !unicode.IsSpace(c) && plain(c) {
			b.WriteString(s[:n])
		} else {
			b.WriteString(replace(s[:n]))
		}
		s = s[n:]
	}
	return b.String()
}
