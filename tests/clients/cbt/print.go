package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
)

// printer writes the messages of a stream as they come: a volume may have more ranges than fit in memory.
type printer struct {
	out     *bufio.Writer
	json    bool
	records int
}

// record is a message in JSON, in the protocol's own names.
type record struct {
	Kind     string  `json:"block_metadata_type"`
	Capacity int64   `json:"volume_capacity_bytes"`
	Ranges   []block `json:"block_metadata"`
}

type block struct {
	Offset int64 `json:"byte_offset"`
	Size   int64 `json:"size_bytes"`
}

func newPrinter(out io.Writer, format string) *printer {
	return &printer{out: bufio.NewWriter(out), json: format == "json"}
}

func (p *printer) print(m message) error {
	p.records++
	if p.json {
		return p.printJSON(m)
	}
	if p.records == 1 {
		fmt.Fprintf(p.out, "%-8s %-16s %-16s %-20s %s\n", "RECORD", "TYPE", "CAPACITY", "OFFSET", "SIZE")
	}
	for _, each := range m.GetBlockMetadata() {
		if _, err := fmt.Fprintf(p.out, "%-8d %-16s %-16d %-20d %d\n", p.records, m.GetBlockMetadataType(),
			m.GetVolumeCapacityBytes(), each.GetByteOffset(), each.GetSizeBytes()); err != nil {
			return err
		}
	}
	return p.out.Flush()
}

func (p *printer) printJSON(m message) error {
	one := record{m.GetBlockMetadataType().String(), m.GetVolumeCapacityBytes(), []block{}}
	for _, each := range m.GetBlockMetadata() {
		one.Ranges = append(one.Ranges, block{each.GetByteOffset(), each.GetSizeBytes()})
	}
	encoded, err := json.Marshal(one)
	if err != nil {
		return err
	}
	before := ",\n"
	if p.records == 1 {
		before = "["
	}
	p.out.WriteString(before)
	p.out.Write(encoded)
	return p.out.Flush()
}

// close ends the output after a stream that ended well. A list in JSON that was cut short stays without its end.
func (p *printer) close() error {
	switch {
	case p.json && p.records == 0:
		p.out.WriteString("[]\n")
	case p.json:
		p.out.WriteString("]\n")
	}
	return p.out.Flush()
}
