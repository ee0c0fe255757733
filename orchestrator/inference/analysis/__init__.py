"""What a statement needs, by PostgreSQL's own analysis of it: reading the printed trees and the catalog."""
