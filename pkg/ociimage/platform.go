package ociimage

import (
	"runtime"
	"slices"
	"strconv"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// DefaultPlatform is the host's architecture under Linux: what a layer is good
// for here even where the host runs something else.
func DefaultPlatform() ocispec.Platform {
	return ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
}

// ParsePlatform reads "os/arch[/variant][:version]". The version is the operating
// system's, which tells Windows' images apart.
func ParsePlatform(s string) (*ocispec.Platform, error) {
	name, version, hasVersion := strings.Cut(s, ":")
	parts := strings.Split(name, "/")
	bad := len(parts) < 2 || len(parts) > 3
	check := parts
	if hasVersion {
		check = append(slices.Clone(parts), version)
	}
	for _, p := range check {
		bad = bad || p == "" || strings.ContainsFunc(p, func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '.' || r == '-')
		})
	}
	if bad {
		return nil, fault.Usagef("platform %q is not os/arch[/variant][:version]", clip(s))
	}
	p := normalize(ocispec.Platform{OS: parts[0], Architecture: parts[1], Variant: append(parts, "")[2], OSVersion: version})
	return &p, nil
}

// FormatPlatform is the inverse of ParsePlatform.
func FormatPlatform(p ocispec.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	if p.OSVersion != "" {
		s += ":" + p.OSVersion
	}
	return s
}

// normalize brings the spellings of one architecture to one: Go's name, and
// the variant that is meant where none is given left out (arm64 is arm64/v8,
// amd64 is amd64/v1), except for 32-bit ARM, whose plain name means v7.
func normalize(p ocispec.Platform) ocispec.Platform {
	p.OS, p.Architecture, p.Variant = strings.ToLower(p.OS), strings.ToLower(p.Architecture), strings.ToLower(p.Variant)
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "aarch64":
		p.Architecture = "arm64"
	case "i386", "i486", "i586", "i686", "x86":
		p.Architecture = "386"
	case "armhf":
		p.Architecture = "arm"
	case "armel":
		p.Architecture = "arm"
		if p.Variant == "" {
			p.Variant = "v6"
		}
	}
	// "8" is an old spelling of "v8".
	if p.Variant != "" && strings.Trim(p.Variant, "0123456789.") == "" {
		p.Variant = "v" + p.Variant
	}
	switch {
	case p.Architecture == "arm64" && (p.Variant == "v8" || p.Variant == "v8.0"),
		p.Architecture == "amd64" && p.Variant == "v1":
		p.Variant = ""
	case p.Architecture == "arm" && p.Variant == "":
		p.Variant = "v7"
	}
	return p
}

// Match reports whether an image for have runs on want.
func Match(want, have ocispec.Platform) bool { return rank(want, have) > 0 }

// rank says how well an image for have runs on want: 0 not at all, else the
// higher the better. A CPU of a later variant runs what was made for an
// earlier one.
func rank(want, have ocispec.Platform) int {
	want, have = normalize(want), normalize(have)
	if want.OS != have.OS || want.Architecture != have.Architecture {
		return 0
	}
	for _, f := range have.OSFeatures {
		if !slices.Contains(want.OSFeatures, f) {
			return 0
		}
	}
	if want.OSVersion != "" && want.OSVersion != have.OSVersion && !strings.HasPrefix(have.OSVersion, want.OSVersion+".") {
		return 0
	}
	if want.Variant == have.Variant {
		return 1 << 20
	}
	w, h := variantNumber(want), variantNumber(have)
	if w == 0 || h == 0 || h > w {
		return 0
	}
	return h
}

// variantNumber orders the variants of one architecture: ten times their
// version; 0 if the variant has no number.
func variantNumber(p ocispec.Platform) int {
	v := p.Variant
	if v == "" {
		switch p.Architecture {
		case "amd64":
			v = "v1"
		case "arm64":
			v = "v8"
		}
	}
	num, ok := strings.CutPrefix(v, "v")
	if !ok {
		return 0
	}
	f, err := strconv.ParseFloat(num, 32)
	if err != nil || f < 0 || f > 1000 {
		return 0
	}
	return int(f * 10)
}
